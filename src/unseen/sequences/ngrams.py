"""A language model of character n-grams: what a detector by perplexity must beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError

START = "\x02"


class CharacterNgrams:
    """Interpolated Kneser-Ney over characters (Kneser and Ney 1995; Chen and Goodman 1999, equation 20).

    order     of the longest n-grams
    discount  taken from every count, in (0, 1)

    A character that the training texts lack shares one place of the uniform distribution under the unigrams.
    """

    def __init__(self, order: int = 6, discount: float = 0.75):
        if order < 1:
            raise InputError("order", f"is {order}", "Give 1 or more.")
        if not 0 < discount < 1:
            raise InputError("discount", f"is {discount}", "Give a number between 0 and 1.")
        self.order, self.discount = order, discount
        self._counts: list[dict[str, Counter[str]]] = []

    def fit(self, texts: Sequence[str]) -> Self:
        """Count the n-grams of texts; raises `InputError` when they have no character."""
        if not any(texts):
            raise InputError("texts", "have no character", "Give a text at least.")
        highest: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            padded = self._padded(text)
            for at in self._ends(text):
                highest[padded[at - self.order : at - 1]][padded[at - 1]] += 1
        self._counts = [highest]
        for _ in range(
            self.order - 1
        ):  # lower orders count in how many contexts an n-gram is found, not how often
            lower: dict[str, Counter[str]] = defaultdict(Counter)
            for context, counts in self._counts[-1].items():
                for character in counts:
                    lower[context[1:]][character] += 1
            self._counts.append(lower)
        self._alphabet = len(set("".join(texts))) + 1
        self._totals = [
            {context: (counts.total(), len(counts)) for context, counts in level.items()}
            for level in self._counts
        ]
        return self

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) mean negative log-likelihood (nats) of a character: higher is less familiar.

        Raises `InputError` before `fit`, and for an empty text.
        """
        if not self._counts:
            raise InputError("n-gram model", "is not fitted", "Call fit(texts) first.")
        scores = []
        for number, text in enumerate(texts):
            if not text:
                raise InputError(f"text {number}", "is empty", "Leave out empty texts.")
            padded = self._padded(text)
            likelihoods = [
                self.probability(padded[at - self.order : at - 1], padded[at - 1]) for at in self._ends(text)
            ]
            scores.append(-float(np.log(likelihoods).mean()))
        return np.array(scores)

    def probability(self, context: str, character: str) -> float:
        """Of a character after `order` - 1 others; "\\x02" stands before a text."""
        found = 1 / self._alphabet
        for level in range(self.order - 1, -1, -1):
            seen = context[level:]
            if seen in self._totals[level]:
                total, kinds = self._totals[level][seen]
                count = self._counts[level][seen][character]
                found = (max(count - self.discount, 0) + self.discount * kinds * found) / total
        return found

    def _padded(self, text: str) -> str:
        return START * (self.order - 1) + text

    def _ends(self, text: str) -> range:
        return range(self.order, self.order + len(text))
