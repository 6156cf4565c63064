import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from unseen.errors import InputError
from unseen.measures.accuracy_estimates import (
    agreement,
    average_confidence,
    average_thresholded_confidence,
    confidence_optimal_transport,
    difference_of_confidences,
    estimate_accuracy,
    thresholded_confidence_optimal_transport,
)


def domain(n, seed, sharpness=3.0, classes=4, label_noise=0.0):
    """A calibrated classifier's probabilities and the labels drawn from them; noise breaks the calibration."""
    random = np.random.default_rng(seed)
    logits = sharpness * random.normal(size=(n, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (random.random((n, 1)) > probabilities.cumsum(1)).sum(1).clip(max=classes - 1)
    noisy = random.random(n) < label_noise
    return probabilities, np.where(noisy, random.integers(0, classes, n), labels)


def accuracy(probabilities, labels):
    return (probabilities.argmax(1) == labels).mean()


def test_by_hand():
    source, labels = (
        [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]],
        [0, 1, 1, 1],
    )  # right, wrong, right, right
    target = [[0.95, 0.05], [0.65, 0.35], [0.75, 0.25], [0.55, 0.45]]
    assert average_confidence(target) == pytest.approx(0.725)
    assert difference_of_confidences(source, labels, target) == pytest.approx(0.75 - (0.75 - 0.725))
    # three source examples are right: the third highest confidence is 0.7, two target ones reach it
    assert average_thresholded_confidence(source, labels, target) == 0.5
    # one target example goes to class 0, three to class 1
    assert confidence_optimal_transport(labels, target) == pytest.approx((0.95 + 0.35 + 0.25 + 0.45) / 4)
    assert agreement(target, [[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [1.0, 0.0]]) == 0.5


@pytest.mark.parametrize("score", ["max confidence", "negative entropy"])
@pytest.mark.parametrize("decimals", [1, 8])
def test_thresholded_confidence_of_the_source_is_its_accuracy(score, decimals):
    source, labels = domain(300, 0, label_noise=0.2)
    source = source.round(decimals)  # one decimal: ties everywhere, the threshold in the midst of them
    source /= source.sum(1, keepdims=True)
    estimate = average_thresholded_confidence(source, labels, source, score)
    assert estimate == pytest.approx(accuracy(source, labels), abs=1e-12)
    estimate = thresholded_confidence_optimal_transport(source, labels, source)
    assert estimate == pytest.approx(accuracy(source, labels), abs=1e-12)
    assert difference_of_confidences(source, labels, source) == pytest.approx(accuracy(source, labels))


def test_sources_without_a_right_or_a_wrong_example():
    target = domain(50, 1)[0]
    source = np.array([[0.6, 0.4], [0.7, 0.3]])
    pair = target[:, :2] / target[:, :2].sum(1, keepdims=True)
    assert average_thresholded_confidence(source, [1, 1], pair) == 0
    assert average_thresholded_confidence(source, [0, 0], pair) == (pair.max(1) >= 0.6).mean()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(2, 5), st.integers(0, 2**30))
def test_transport_is_optimal(n, classes, seed):
    """Against the linear program, with label shares that divide evenly among the target examples."""
    random = np.random.default_rng(seed)
    target, labels = random.dirichlet(np.ones(classes), n), random.integers(0, classes, n)
    shares = np.bincount(labels, minlength=classes) / n
    rows = np.kron(np.eye(n), np.ones(classes))
    columns = np.kron(np.ones(n), np.eye(classes))
    one_hot = np.eye(classes)
    cost = np.abs(target[:, None] - one_hot[None]).max(2)  # infinity norm, Lu et al.
    best = linprog(
        cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([np.full(n, 1 / n), shares])
    )
    assert confidence_optimal_transport(labels, target) == pytest.approx(1 - best.fun, abs=1e-9)
    assert confidence_optimal_transport(labels, target) <= average_confidence(target) + 1e-12


def test_transport_sees_a_collapse_that_confidence_does_not():
    labels = np.arange(100) % 2
    collapsed = np.tile([0.99, 0.01], (200, 1))
    assert average_confidence(collapsed) == pytest.approx(0.99)
    assert confidence_optimal_transport(labels, collapsed) == pytest.approx(0.5)


def test_transport_on_a_subset_is_near_and_reproducible():
    target, labels = domain(3000, 2)
    whole = confidence_optimal_transport(labels, target, max_examples=3000)
    part = confidence_optimal_transport(labels, target, max_examples=500, seed=1)
    assert part == pytest.approx(whole, abs=0.04)
    assert part == confidence_optimal_transport(labels, target, max_examples=500, seed=1)
    assert part != confidence_optimal_transport(labels, target, max_examples=500, seed=2)


def test_estimates_by_confidence_are_near_the_truth_of_a_calibrated_model():
    """A harder target on which the classifier stays calibrated, without label shift."""
    source, labels = domain(3000, 3, sharpness=4)
    target, target_labels = domain(3000, 4, sharpness=2)
    truth = accuracy(target, target_labels)
    assert accuracy(source, labels) - truth > 0.1
    estimates = estimate_accuracy(source, labels, target)
    for name in ("average confidence", "doc", "cot"):
        assert estimates[name] == pytest.approx(truth, abs=0.04), name


def test_estimates_by_threshold_are_near_the_truth_where_a_threshold_decides():
    """Right exactly when confident: ATC's assumption; the model is far from calibrated."""

    def overconfident(seed, sharpness):
        probabilities = domain(2000, seed, sharpness, classes=2)[0]
        right = probabilities.max(1) >= 0.9
        return probabilities, np.where(right, probabilities.argmax(1), 1 - probabilities.argmax(1))

    source, labels = overconfident(5, 4)
    target, target_labels = overconfident(6, 2)
    truth = accuracy(target, target_labels)
    assert accuracy(source, labels) - truth > 0.2
    estimates = estimate_accuracy(source, labels, target)
    for name in ("atc max confidence", "atc negative entropy", "cott"):
        assert estimates[name] == pytest.approx(truth, abs=0.03), name
    assert estimates["average confidence"] - truth > 0.2  # and calibration's estimates are far off
    atc = {"atc max confidence", "atc negative entropy"}
    assert set(estimates) == {"average confidence", "doc", "cot", "cott"} | atc


def test_two_draws_of_a_calibrated_posterior_agree_as_often_as_they_are_right():
    """GDE's theorem: predictions drawn from the same posterior that the labels are drawn from."""
    random = np.random.default_rng(5)
    posterior = domain(20000, 6)[0].cumsum(1)
    first, second, labels = ((random.random((20000, 1)) > posterior).sum(1).clip(max=3) for _ in range(3))
    estimate = agreement(np.eye(4)[first], np.eye(4)[second])
    assert estimate == pytest.approx((first == labels).mean(), abs=0.015)


def test_second_model_adds_its_estimate_and_tensors_pass():
    source, labels = domain(50, 7)
    target = torch.tensor(domain(60, 8)[0], dtype=torch.float32)
    estimates = estimate_accuracy(torch.tensor(source), torch.tensor(labels), target, target)
    assert estimates["gde"] == 1.0
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in estimates.values())


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: estimate_accuracy([[0.5, 0.5]], [0], [[0.2, 0.3, 0.5]]),
            "target_probabilities: has 3 classes",
        ),
        (lambda: estimate_accuracy([[0.5, 0.5]], [0, 1], [[0.5, 0.5]]), "source_labels: has 2 entries"),
        (lambda: estimate_accuracy([[0.5, 0.5]], [0], np.zeros((0, 2))), "target_probabilities: is empty"),
        (lambda: average_confidence([[4.0, -2.0]]), "target_probabilities: has rows"),
        (lambda: confidence_optimal_transport([3], [[0.5, 0.5]]), "source_labels: has values"),
        (lambda: agreement([[0.5, 0.5]], [[0.5, 0.5]] * 2), "second_target_probabilities: has 2 entries"),
        (
            lambda: average_thresholded_confidence([[0.5, 0.5]], [0], [[0.5, 0.5]], "margin"),
            "score: is 'margin'",
        ),
    ],
)
def test_errors_name_the_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
