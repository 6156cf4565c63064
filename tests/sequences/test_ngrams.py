"""Character n-grams with Kneser-Ney discounting."""

import math
from collections import Counter

import numpy as np
import pytest

from unseen.errors import InputError
from unseen.sequences.ngrams import START, CharacterNgrams

TEXTS = ["abracadabra", "a cab", "bad crab", "ababab"]


def written_out(context, character, order=3, discount=0.75):
    """Interpolated Kneser-Ney of trigrams, counted by scanning: Chen and Goodman 1999."""
    padded = [START * (order - 1) + text for text in TEXTS]
    trigrams = [text[i : i + 3] for text in padded for i in range(len(text) - 2)]
    bigrams = [gram[1:] for gram in set(trigrams)]  # once for each different character before
    unigrams = [gram[1:] for gram in set(bigrams)]
    alphabet = len(set("".join(TEXTS))) + 1

    def smoothed(grams, context, lower):
        following = Counter(gram[-1] for gram in grams if gram[:-1] == context)
        if not following:
            return lower
        total = sum(following.values())
        return max(following[character] - discount, 0) / total + discount * len(following) / total * lower

    lower = smoothed(unigrams, "", 1 / alphabet)
    return smoothed(trigrams, context, smoothed(bigrams, context[1:], lower))


def test_probabilities_equal_the_formula():
    model = CharacterNgrams(order=3).fit(TEXTS)
    for context in ("ab", "ra", START * 2, START + "a", "zz", "dz"):
        for character in "abcdr z":
            assert model.probability(context, character) == pytest.approx(written_out(context, character))


@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_one(order):
    model = CharacterNgrams(order=order).fit(TEXTS)
    characters = [*sorted(set("".join(TEXTS))), "?"]  # one for all that were never seen
    for context in ("abra", "xyzu", START * 4):
        context = context[4 - (order - 1) :]
        assert sum(model.probability(context, each) for each in characters) == pytest.approx(1)


def test_scores_are_mean_surprise():
    model = CharacterNgrams(order=3).fit(TEXTS)
    expected = -np.mean(
        [math.log(written_out(c, x)) for c, x in ((START * 2, "a"), (START + "a", "b"), ("ab", "q"))]
    )
    assert model.score(["abq"])[0] == pytest.approx(expected)
    familiar, unfamiliar = model.score(["abracab"]), model.score(["qxjzkwp"])
    assert familiar[0] < unfamiliar[0]


def test_errors():
    with pytest.raises(InputError, match="Call fit"):
        CharacterNgrams().score(["a"])
    with pytest.raises(InputError, match="no character"):
        CharacterNgrams().fit(["", ""])
    with pytest.raises(InputError, match="text 1: is empty"):
        CharacterNgrams().fit(TEXTS).score(["a", ""])
    with pytest.raises(InputError, match="order"):
        CharacterNgrams(0)
    for discount in (0, 1):
        with pytest.raises(InputError, match="discount"):
            CharacterNgrams(discount=discount)
