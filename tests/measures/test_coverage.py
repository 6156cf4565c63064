from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unseen.errors import InputError
from unseen.measures.coverage import (
    accuracy_at_coverage,
    aurc,
    excess_aurc,
    risk_coverage,
    threshold_at_coverage,
)

scores_with_ties = st.integers(1, 40).flatmap(
    lambda n: arrays(np.float64, n, elements=st.integers(0, 5).map(float))
)


def test_curve_by_hand():
    curve = risk_coverage([0.9, 0.1, 0.5, 0.7], [1, 0, 0, 1])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve.threshold.tolist() == [0.9, 0.7, 0.5, 0.1]
    assert aurc([0.9, 0.1, 0.5, 0.7], [1, 0, 0, 1]) == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_ties_are_the_mean_over_all_orders():
    scores, correct = np.array([2, 2, 1, 1, 1, np.inf]), np.array([1, 0, 0, 1, 0, 1])
    areas = []
    for order in permutations(range(6)):
        errors = (
            1 - correct[sorted(order, key=lambda i: -scores[i])]
        )  # a stable sort keeps this order of ties
        areas.append((np.cumsum(errors) / np.arange(1, 7)).mean())
    assert aurc(scores, correct) == pytest.approx(np.mean(areas), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(scores_with_ties, st.integers(0, 2**30))
def test_bounds_and_invariances(scores, seed):
    random = np.random.default_rng(seed)
    correct, order = random.integers(0, 2, len(scores)), random.permutation(len(scores))
    value = aurc(scores, correct)
    assert aurc(np.exp(scores), correct) == pytest.approx(value, abs=1e-12)
    assert aurc(scores[order], correct[order]) == pytest.approx(value, abs=1e-12)
    assert -1e-12 <= excess_aurc(scores, correct) <= value + 1e-12
    assert excess_aurc(correct, correct) == 0
    assert aurc(np.zeros(len(scores)), correct) == pytest.approx(1 - correct.mean())


def test_excess_tends_to_the_published_limit():
    correct = np.arange(20000) % 10 != 0  # risk 0.1: optimal AURC is r + (1 - r) ln(1 - r)
    scores = np.random.default_rng(0).random(20000)
    best = 0.1 + 0.9 * np.log(0.9)
    assert aurc(scores, correct) - excess_aurc(scores, correct) == pytest.approx(best, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(scores_with_ties, st.floats(0.001, 1.0))
def test_threshold_keeps_at_least_the_share_and_is_the_highest(scores, coverage):
    threshold = threshold_at_coverage(scores, coverage)
    assert (scores >= threshold).mean() >= coverage - 1e-9
    higher = scores[scores > threshold]
    assert len(higher) == 0 or (scores >= higher.min()).mean() < coverage


def test_threshold_of_few_examples_and_of_shares_that_do_not_round():
    assert threshold_at_coverage([1.0, 2.0, 3.0], 0.95) == 1.0
    assert threshold_at_coverage([5.0], 0.01) == 5.0
    hundred = np.arange(100.0)
    for percent in range(1, 101):  # 0.07 * 100 is above 7 in floating point
        assert threshold_at_coverage(hundred, percent / 100) == 100 - percent


def test_threshold_also_holds_in_single_precision(generator):
    scores = torch.randn(1000, generator=generator)
    assert (scores >= threshold_at_coverage(scores, 0.9)).float().mean() >= 0.9


def test_expected_coverage_of_new_examples():
    random = np.random.default_rng(0)
    kept = [share_kept(random, 30, 0.9) for _ in range(4000)]
    assert np.mean(kept) == pytest.approx(27 / 31, abs=0.005)


def share_kept(random, n, coverage):
    return 1 - threshold_at_coverage(random.random(n), coverage)


def test_accuracy_at_coverage_accepts_ties_together():
    found = accuracy_at_coverage([3, 2, 2, 1], [1, 1, 0, 0], 0.5)
    assert (found.coverage, found.accepted, found.threshold) == (0.75, 3, 2.0)
    assert found.accuracy == pytest.approx(2 / 3)
    assert accuracy_at_coverage([3, 2, 2, 1], [1, 1, 0, 0], 1.0).accuracy == 0.5


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: risk_coverage([], []), "scores: is empty"),
        (lambda: aurc([1.0, np.nan], [1, 0]), "scores: has 1 NaN"),
        (lambda: aurc([1.0, 2.0], [1]), "correct: has 1 entries, but scores 2"),
        (lambda: threshold_at_coverage([1.0], 0.0), "coverage: is 0.0"),
        (lambda: threshold_at_coverage([1.0], 95), "coverage: is 95"),
        (lambda: accuracy_at_coverage([1.0], [1, 0], 0.5), "correct: has 2 entries"),
    ],
)
def test_errors_name_the_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
