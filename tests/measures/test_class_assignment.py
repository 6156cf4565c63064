import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from unseen.measures.class_assignment import assigned_probability


def by_seats(probabilities, seats):
    """Obvious: a column for every single seat."""
    columns = probabilities[:, np.repeat(np.arange(len(seats)), seats)]
    rows, chosen = linear_sum_assignment(columns, maximize=True)
    return columns[rows, chosen]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 10**6), st.floats(0.05, 4), st.booleans())
def test_the_total_is_the_largest_possible(classes, examples, seed, sharpness, ties):
    generator = np.random.default_rng(seed)
    scores = sharpness * generator.normal(size=(examples, classes))
    scores[:, 0] += sharpness
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    if ties:
        p = np.round(p, 1)
    seats = np.bincount(generator.integers(classes, size=examples), minlength=classes)
    assert assigned_probability(p, seats).sum() == pytest.approx(by_seats(p, seats).sum(), abs=1e-9)
    assert assigned_probability(p, seats).shape == (examples,)
