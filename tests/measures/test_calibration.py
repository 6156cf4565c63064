import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from unseen.errors import InputError, UnseenWarning
from unseen.measures.calibration import (
    brier,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)


def predictions(n=500, classes=4, seed=0):
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (random.random((n, 1)) > probabilities.cumsum(1)).sum(1).clip(max=classes - 1)
    return logits, probabilities, labels


def test_error_against_a_loop_over_bins():
    _, probabilities, labels = predictions()
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    gaps, weights = [], []
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            gaps.append(abs(confidence[inside].mean() - correct[inside].mean()))
            weights.append(inside.mean())
    gaps, weights = np.array(gaps), np.array(weights)
    assert calibration_error(probabilities, labels) == pytest.approx((gaps * weights).sum(), abs=1e-12)
    assert calibration_error(probabilities, labels, norm="max") == pytest.approx(gaps.max(), abs=1e-12)
    squared = np.sqrt((gaps**2 * weights).sum())
    assert calibration_error(probabilities, labels, norm="l2") == pytest.approx(squared, abs=1e-12)


def test_curve_against_scikit_learn():
    _, probabilities, labels = predictions()
    curve = reliability_curve(probabilities, labels, 10)
    correct = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(correct, probabilities.max(1), n_bins=10)
    assert curve.accuracy == pytest.approx(accuracy) and curve.confidence == pytest.approx(confidence)
    assert curve.count.sum() == len(labels)
    assert ((curve.low < curve.confidence) & (curve.confidence <= curve.high)).all()


def test_by_hand():
    probabilities, labels = [[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]], [0, 1, 1, 1]
    # bins of 0.8 (accuracy 0.5) and of 0.6 (accuracy 1)
    assert calibration_error(probabilities, labels) == pytest.approx((0.3 + 0.4) / 2)
    assert calibration_error(probabilities, labels, norm="max") == pytest.approx(0.4)
    assert calibration_error(probabilities, labels, bins=1) == pytest.approx(0.75 - 0.7)
    assert brier(probabilities, labels) == pytest.approx((0.08 + 1.28 + 0.32 + 0.32) / 4)


def test_adaptive_bins_hold_equal_numbers_and_never_split_ties():
    _, probabilities, labels = predictions(600)
    assert reliability_curve(probabilities, labels, 12, adaptive=True).count.tolist() == [50] * 12
    tied = np.repeat([[0.7, 0.3], [0.9, 0.1]], 50, axis=0)
    order = np.random.default_rng(0).permutation(100)
    answers = np.arange(100) % 3 == 0
    curve = reliability_curve(tied, answers, 7, adaptive=True)
    assert curve.count.tolist() == [50, 50]
    value = calibration_error(tied, answers, 7, adaptive=True)
    assert calibration_error(tied[order], answers[order], 7, adaptive=True) == pytest.approx(value)


def test_edges_of_the_range():
    assert calibration_error([[1.0, 0.0]] * 3, [0, 0, 0]) == 0
    assert calibration_error([[1.0, 0.0]] * 3, [1, 1, 1]) == 1
    assert brier([[1.0, 0.0]], [1]) == 2
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(87.3, abs=0.1)
    assert negative_log_likelihood([[1.0, 0.0]], [0]) == 0


def test_error_falls_with_size_for_a_calibrated_model():
    values = [calibration_error(*predictions(n, seed=1)[1:]) for n in (300, 30000)]
    assert values[1] < 0.02 < values[0] < 0.12


def test_scores_against_scikit_learn():
    _, probabilities, labels = predictions()
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(log_loss(labels, probabilities))
    binary = probabilities[:, :2] / probabilities[:, :2].sum(1, keepdims=True)
    answers = (labels > 1).astype(int)
    expected = 2 * brier_score_loss(answers, binary[:, 1])
    assert brier(binary, answers) == pytest.approx(expected)


@pytest.mark.parametrize("true", [0.2, 1.0, 3.0])
def test_temperature_is_the_minimum_and_is_recovered(true):
    logits, _, labels = predictions(5000)
    logits = logits * true
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.08)

    def loss(log_temperature):
        scaled = torch.tensor(logits) / np.exp(log_temperature)
        return torch.nn.functional.cross_entropy(scaled, torch.tensor(labels)).item()

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)


def test_temperature_scales_with_the_logits_and_ignores_shifts():
    logits, _, labels = predictions(200)
    found = fit_temperature(logits, labels)
    shifted = logits + np.arange(200)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(found, rel=1e-6)
    for factor in (1e-6, 1e6):
        assert fit_temperature(logits * factor, labels) == pytest.approx(found * factor, rel=1e-6)
    assert fit_temperature(torch.tensor(logits, requires_grad=True), labels) == pytest.approx(found)


def test_temperature_without_a_finite_optimum():
    with pytest.warns(UnseenWarning, match="separate the labels perfectly"):
        cold = fit_temperature([[1.0, -1.0], [-1.0, 1.0]], [0, 1])
    with pytest.warns(UnseenWarning, match="no better than chance"):
        hot = fit_temperature([[1.0, -1.0], [-1.0, 1.0]], [1, 0])
    assert 0 < cold < 0.01 and hot > 100
    assert fit_temperature(np.zeros((3, 2)), [0, 1, 0]) == 1.0


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: calibration_error([[2.0, 3.0]], [0]), "probabilities: has rows that are not probabilities"),
        (lambda: calibration_error([[0.5], [0.5]], [0, 0]), r"probabilities: has shape \(2, 1\)"),
        (lambda: calibration_error([[0.5, 0.5]], [2]), "labels: has values in"),
        (lambda: calibration_error([[0.5, 0.5]], [0.5]), "labels: has values in"),
        (lambda: calibration_error([[0.5, 0.5]], [0, 1]), "labels: has 2 entries, but the predictions 1"),
        (lambda: calibration_error([[0.5, 0.5]], [0], bins=0), "bins: is 0"),
        (lambda: calibration_error([[0.5, 0.5]], [0], norm="l3"), "norm: is 'l3'"),
        (
            lambda: brier([[np.nan, 0.5]], [0]),
            "probabilities: has 1 NaN of 2 values, the first at index 0, 0",
        ),
        (lambda: negative_log_likelihood(np.zeros((0, 2)), []), "probabilities: is empty"),
        (lambda: fit_temperature([[0.0, -np.inf]], [0]), "logits: has infinite values"),
    ],
)
def test_errors_name_the_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
