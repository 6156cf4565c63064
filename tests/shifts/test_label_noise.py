import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.shifts.label_noise import noisy_labels, swapped

LABELS = np.arange(1000) % 5


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.sampled_from(["uniform", "pair"]), st.integers(0, 99))
def test_the_rate_is_that_of_wrong_labels(rate, kind, seed):
    noisy = noisy_labels(LABELS, rate, kind, classes=5, seed=seed)
    assert (noisy != LABELS).sum() == round(rate * 1000)
    assert noisy.min() >= 0 and noisy.max() < 5


def test_kinds():
    uniform = noisy_labels(LABELS, 1.0, classes=5)
    counts = np.bincount(uniform[LABELS == 2], minlength=5)
    assert counts[2] == 0 and counts[[0, 1, 3, 4]].min() > 25
    assert np.array_equal(noisy_labels(LABELS, 1.0, "pair", classes=5), (LABELS + 1) % 5)
    confusion = np.eye(5) * 9
    confusion[:, 4], confusion[4, 0] = 3, 1
    found = noisy_labels(LABELS, 1.0, "confusion", classes=5, confusion=confusion)
    assert set(found[LABELS < 4]) == {4} and set(found[LABELS == 4]) == {0}


def test_seeds_and_input_are_respected():
    before = LABELS.copy()
    first, again, other = (noisy_labels(LABELS, 0.3, classes=5, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(before, LABELS)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.floats(0, 1), st.integers(0, 99))
def test_swapped_captions_are_the_same_captions_elsewhere(count, rate, seed):
    captions = [f"caption {i}" for i in range(count)]
    found = swapped(captions, rate, seed=seed)
    moved = sum(a != b for a, b in zip(found, captions, strict=True))
    assert sorted(found) == sorted(captions)
    assert moved == (round(rate * count) if round(rate * count) > 1 else 0)


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        (LABELS, {"rate": 1.1, "classes": 5}, "rate: is 1.1"),
        (LABELS, {"rate": 0.1, "classes": 4}, "range from 0 to 4"),
        (LABELS, {"rate": 0.1, "classes": 1}, "classes: is 1"),
        (LABELS - 1, {"rate": 0.1, "classes": 5}, "range from -1"),
        (LABELS / 2, {"rate": 0.1, "classes": 5}, "Give integers"),
        (LABELS, {"rate": 0.1, "classes": 5, "kind": "flip"}, "kind: is 'flip'"),
        (LABELS, {"rate": 0.1, "classes": 5, "kind": "confusion"}, "confusion: has shape"),
        (
            LABELS,
            {"rate": 0.1, "classes": 5, "kind": "confusion", "confusion": np.eye(5)},
            "no other class for class 0",
        ),
    ],
)
def test_what_cannot_be_is_told(labels, options, match):
    with pytest.raises(InputError, match=match):
        noisy_labels(labels, **options)
