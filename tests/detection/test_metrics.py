import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from unseen.detection.metrics import compare_auroc, delong_interval, fpr_at_tpr, ood_metrics, oscr
from unseen.errors import InputError

# few distinct values, so that ties are everywhere
tied_scores = st.integers(1, 30).flatmap(
    lambda n: arrays(np.float64, n, elements=st.integers(-4, 4).map(float))
)


def joined(familiar, unfamiliar):
    scores = np.concatenate([familiar, unfamiliar])
    return np.repeat([1, 0], [len(familiar), len(unfamiliar)]), scores


@settings(max_examples=100, deadline=None)
@given(tied_scores, tied_scores)
def test_agrees_with_scikit_learn_with_ties(familiar, unfamiliar):
    label, score = joined(familiar, unfamiliar)
    found = ood_metrics(familiar, unfamiliar)
    assert found.auroc == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert found.aupr_in == pytest.approx(average_precision_score(label, score), abs=1e-12)
    assert found.aupr_out == pytest.approx(average_precision_score(1 - label, -score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)], abs=1e-12)
    trapezoid = ood_metrics(familiar, unfamiliar, aupr="trapezoid")
    for area, sign, positive in ((trapezoid.aupr_in, 1, label), (trapezoid.aupr_out, -1, 1 - label)):
        precision, recall, _ = precision_recall_curve(positive, sign * score)
        assert area == pytest.approx(auc(recall, precision), abs=1e-12)
    assert (found.n_familiar, found.n_unfamiliar) == (len(familiar), len(unfamiliar))


def test_openood_false_positive_rate_is_the_mirrored_call(generator):
    familiar = torch.randn(200, generator=generator) + 1
    unfamiliar = torch.randn(150, generator=generator)
    label, score = joined(familiar, unfamiliar)
    fpr, tpr, _ = roc_curve(1 - label, -score, drop_intermediate=False)
    assert fpr_at_tpr(-unfamiliar, -familiar)[0] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(tied_scores, tied_scores)
def test_only_the_ranking_counts_and_swapping_mirrors(familiar, unfamiliar):
    found = ood_metrics(familiar, unfamiliar)
    assert ood_metrics(np.exp(familiar) + 3, np.exp(unfamiliar) + 3) == found
    reordered = ood_metrics(familiar[::-1], unfamiliar[::-1])
    assert astuple(reordered) == pytest.approx(astuple(found), abs=1e-12)
    swapped = ood_metrics(unfamiliar, familiar)
    assert swapped.auroc == pytest.approx(1 - found.auroc, abs=1e-12)
    assert swapped.auroc_low == pytest.approx(1 - found.auroc_high, abs=1e-6)
    assert 0 <= found.auroc_low <= found.auroc <= found.auroc_high <= 1
    assert 0 <= found.fpr95_low <= found.fpr95 <= found.fpr95_high <= 1


def placements(familiar, unfamiliar):
    familiar, unfamiliar = np.asarray(familiar)[:, None], np.asarray(unfamiliar)[None]
    return (familiar > unfamiliar) + 0.5 * (familiar == unfamiliar)


def test_delong_interval_against_all_pairs():
    random = np.random.default_rng(0)
    familiar, unfamiliar = random.integers(2, 9, 40), random.integers(0, 7, 25)
    pairs = placements(familiar, unfamiliar)
    value = pairs.mean()
    variance = pairs.mean(1).var(ddof=1) / 40 + pairs.mean(0).var(ddof=1) / 25
    reach = 1.959963984540054 * np.sqrt(variance) / (value * (1 - value))
    centre = np.log(value / (1 - value))
    expected = [1 / (1 + np.exp(-(centre + sign * reach))) for sign in (-1, 1)]
    assert delong_interval(familiar, unfamiliar) == pytest.approx(expected, abs=1e-12)


def test_perfect_separation_still_has_an_interval_that_shrinks():
    few = delong_interval(np.arange(10) + 100, np.arange(10))
    many = delong_interval(np.arange(1000) + 5000, np.arange(1000))
    assert few[1] == many[1] == 1.0
    assert 0.6 < few[0] < 0.95 < many[0] < 1
    assert delong_interval([1.0], [1.0])[0] < 0.2  # one input each says next to nothing
    low, high = delong_interval(np.ones(20), np.ones(20))
    assert low < 0.5 < high and low == pytest.approx(1 - high, abs=1e-6)
    # a closed form: with one input each, (1 - v)^2 = z^2 v (1 - v)
    assert delong_interval([1.0], [0.0])[0] == pytest.approx(1 / (1 + 1.959963984540054**2), abs=1e-9)


def test_intervals_cover_at_their_level():
    random = np.random.default_rng(1)
    shift, runs = 2.0, 300
    auroc, fpr95 = norm.cdf(shift / np.sqrt(2)), norm.sf(shift + norm.ppf(0.05))
    auroc_hits = fpr_hits = 0
    for _ in range(runs):
        found = ood_metrics(random.normal(shift, 1, 120), random.normal(0, 1, 80))
        auroc_hits += found.auroc_low <= auroc <= found.auroc_high
        fpr_hits += found.fpr95_low <= fpr95 <= found.fpr95_high
    assert 0.91 <= auroc_hits / runs <= 0.985
    assert fpr_hits / runs >= 0.93  # conservative for few familiar inputs, never short


def test_fpr_interval_has_no_upper_bound_for_few_familiar_inputs():
    unfamiliar = np.arange(1000) - 2000.0
    assert fpr_at_tpr(np.arange(71), unfamiliar)[1] == (0.0, 1.0)
    fpr, (low, high) = fpr_at_tpr(np.arange(200), unfamiliar)
    assert (fpr, low) == (0.0, 0.0) and high < 0.01


def test_fpr_threshold_accepts_the_share_asked_for():
    familiar = np.arange(20.0)  # 95 % are the 19 scores from 1 upwards
    assert fpr_at_tpr(familiar, [0.0, 0.5, 1.0, 2.0])[0] == 0.5
    assert fpr_at_tpr(familiar, [0.0, 0.5, 1.0, 2.0], 1.0)[0] == 1.0
    assert fpr_at_tpr(familiar, [0.0, 0.5, 1.0, 19.0], 0.05)[0] == 0.25


@settings(max_examples=50, deadline=None)
@given(tied_scores, tied_scores, st.integers(0, 2**30))
def test_oscr_against_all_pairs(familiar, unfamiliar, seed):
    correct = np.random.default_rng(seed).integers(0, 2, len(familiar))
    expected = (placements(familiar, unfamiliar) * correct[:, None]).mean()
    assert oscr(familiar, unfamiliar, correct) == pytest.approx(expected, abs=1e-12)
    everything = oscr(familiar, unfamiliar, np.ones(len(familiar)))
    assert everything == pytest.approx(ood_metrics(familiar, unfamiliar).auroc, abs=1e-12)


def test_oscr_is_the_area_under_its_curve():
    random = np.random.default_rng(2)
    familiar, unfamiliar, correct = random.normal(1, 1, 50), random.normal(0, 1, 60), random.random(50) < 0.8
    thresholds = np.sort(np.append(np.concatenate([familiar, unfamiliar]), np.inf))[::-1]
    ccr = [(correct & (familiar >= t)).mean() for t in thresholds]
    fpr = [(unfamiliar >= t).mean() for t in thresholds]
    assert oscr(familiar, unfamiliar, correct) == pytest.approx(np.trapezoid(ccr, fpr), abs=1e-12)


def test_paired_comparison_against_all_pairs():
    random = np.random.default_rng(3)
    base_f, base_u = random.normal(1, 1, 60), random.normal(0, 1, 50)
    a = base_f.round(1), base_u.round(1)
    b = (base_f + random.normal(0, 0.7, 60)).round(1), (base_u + random.normal(0, 0.7, 50)).round(1)
    gap = placements(*a) - placements(*b)
    error = np.sqrt(gap.mean(1).var(ddof=1) / 60 + gap.mean(0).var(ddof=1) / 50)
    found = compare_auroc(*a, *b)
    assert found.difference == pytest.approx(gap.mean(), abs=1e-12)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(gap.mean()) / error), rel=1e-9)
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * error, rel=1e-9)
    mirrored = compare_auroc(*b, *a)
    assert mirrored.p_value == pytest.approx(found.p_value) and mirrored.low == pytest.approx(-found.high)


def test_comparison_of_equal_rankings():
    familiar, unfamiliar = np.array([1.0, 3.0, 5.0]), np.array([0.0, 2.0, 4.0])
    same = compare_auroc(familiar, unfamiliar, 2 * familiar, 2 * unfamiliar)
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    opposite = compare_auroc([2.0, 3.0], [0.0, 1.0], [0.0, 1.0], [2.0, 3.0])
    assert opposite.difference == 1.0 and np.isnan(opposite.p_value)


def test_comparison_false_alarm_rate():
    random = np.random.default_rng(4)
    rejected = 0
    for _ in range(300):
        f, u = random.normal(1, 1, 60), random.normal(0, 1, 60)
        noise = [random.normal(0, 0.7, 60) for _ in range(4)]
        rejected += compare_auroc(f + noise[0], u + noise[1], f + noise[2], u + noise[3]).p_value < 0.05
    assert 0.015 <= rejected / 300 <= 0.09


def test_tensors_of_any_precision_and_infinities():
    found = ood_metrics(torch.tensor([3.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0, 2.0]))
    assert found.auroc == 0.875
    assert ood_metrics([np.inf, 1.0], [-np.inf, -np.inf]).auroc == 1.0


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: ood_metrics([], [1.0]), "familiar: is empty"),
        (
            lambda: ood_metrics([1.0], np.array([0.0, np.nan])),
            "unfamiliar: has 1 NaN of 2 values, the first at index 1",
        ),
        (lambda: ood_metrics([[1.0]], [1.0]), "familiar: has shape"),
        (lambda: ood_metrics(["a"], [1.0]), "familiar: has values of type"),
        (lambda: ood_metrics([1.0], [1.0], confidence=95), "confidence: is 95"),
        (lambda: ood_metrics([1.0], [1.0], aupr="linear"), "aupr: is 'linear'"),
        (lambda: fpr_at_tpr([1.0], [1.0], 0.0), "tpr: is 0.0"),
        (lambda: oscr([1.0, 2.0], [0.0], [1]), "correct: has 1 entries, but familiar 2"),
        (lambda: oscr([1.0], [0.0], [7]), r"correct: has values in \[7, 7\]"),
        (
            lambda: compare_auroc([1.0, 2.0], [0.0, 1.0], [1.0], [0.0, 1.0]),
            "familiar_b: has 1 scores, but a has 2",
        ),
        (lambda: compare_auroc([1.0, 2.0], [0.0], [1.0, 2.0], [0.0]), "unfamiliar_b: has a single score"),
    ],
)
def test_errors_name_the_input(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_points_without_intervals_are_the_same_points(generator):
    familiar, unfamiliar = torch.randn(80, generator=generator) + 1, torch.randn(60, generator=generator)
    whole, points = ood_metrics(familiar, unfamiliar), ood_metrics(familiar, unfamiliar, confidence=None)
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95"):
        assert getattr(whole, name) == getattr(points, name)
    assert math.isnan(points.auroc_low) and math.isnan(points.fpr95_high)
