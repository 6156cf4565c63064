"""Candidates of negative labels from WordNet, where nltk and its corpus are on the machine."""

from __future__ import annotations

from typing import Any

from unseen.errors import InputError, MissingExtra

POOLS = {"nouns": "n", "adjectives": "a"}
"""What NegLabel and LAPT choose negative labels among, by nltk's marks of parts of speech."""


def wordnet_candidates(wordnet: Any = None) -> dict[str, list[str]]:
    """{"nouns": [...], "adjectives": [...]}, sorted, for `mine_negative_labels`: spaces for underscores, lower case.

    wordnet  a reader of nltk, such as nltk.corpus.wordnet31; None takes nltk.corpus.wordnet (WordNet 3.0, some
             120,000 nouns and 20,000 adjectives)
    Nothing is downloaded. Raises `MissingExtra` without nltk, `InputError` where its corpus is absent or empty.
    """
    if wordnet is None:
        try:
            from nltk import corpus
        except ImportError:
            raise MissingExtra("candidates from WordNet", "wordnet") from None
        wordnet = corpus.wordnet
    try:
        pools = {name: list(wordnet.all_lemma_names(pos=mark)) for name, mark in POOLS.items()}
    except LookupError:  # nltk's, when it does not find its data
        raise InputError(
            "WordNet",
            "is not among nltk's data on this machine",
            "Get it once: python -m nltk.downloader wordnet (or set NLTK_DATA to where it is).",
        ) from None
    for name, words in pools.items():
        if not words:
            raise InputError("WordNet", f"has no {name}", "Give a reader of a whole WordNet.")
    return {name: sorted({word.replace("_", " ").lower() for word in words}) for name, words in pools.items()}
