"""Transition matrices: rows by hand, stratified choice, scaling, and errors."""

import pytest
import torch

from unseen.errors import InputError
from unseen.relabelling.transition import estimate_transition


def rows(*confidences):
    return torch.tensor([[c, 1 - c] for c in confidences])


def test_rows_are_mean_probabilities_of_a_true_class():
    probs = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]])
    found = estimate_transition(probs, torch.tensor([0, 0, 1]))
    assert torch.allclose(found, torch.tensor([[0.7, 0.3], [0.4, 0.6]]))
    assert torch.allclose(found.sum(1), torch.ones(2))


def test_images_are_taken_evenly_over_the_range_of_confidence():
    probs = rows(0.9, 0.6, 0.7, 0.8, 0.99)
    probs = torch.cat([probs, rows(0.2)])
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    found = estimate_transition(probs, labels, per_class=3)
    assert found[0, 0].item() == pytest.approx((0.6 + 0.8 + 0.99) / 3)
    first = estimate_transition(probs, labels, per_class=3, stratify="none")
    assert first[0, 0].item() == pytest.approx((0.9 + 0.6 + 0.7) / 3)
    assert estimate_transition(probs, labels, per_class=1)[0, 0].item() == pytest.approx(0.6)


def test_a_budget_above_the_number_of_images_takes_all():
    probs, labels = rows(0.9, 0.6, 0.2), torch.tensor([0, 0, 1])
    assert torch.equal(estimate_transition(probs, labels, 50), estimate_transition(probs, labels, 2))


def test_min_max_scaling_keeps_the_order():
    probs = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.arange(40) % 4
    plain, scaled = (estimate_transition(probs, labels, normalize=n) for n in ("rows", "minmax"))
    assert scaled.min() == 0 and scaled.max() == 1
    assert torch.equal(plain.flatten().argsort(), scaled.flatten().argsort())


@pytest.mark.parametrize(
    ("probs", "labels", "options", "problem"),
    [
        (rows(0.5, 0.5) * 2, [0, 1], {}, "no probabilities"),
        (rows(0.5, float("nan")), [0, 1], {}, "no probabilities"),
        (rows(0.5, 0.5), [0, 0], {}, "class 1: has no labelled image"),
        (rows(0.5, 0.5), [0, 2], {}, "do not fit"),
        (rows(0.5, 0.5), [0], {}, "do not fit"),
        (torch.zeros(0, 2), [], {}, "do not fit"),
        (rows(0.5, 0.5), [0, 1], {"per_class": 0}, "per_class"),
        (rows(0.5, 0.5), [0, 1], {"stratify": "x"}, "stratify"),
        (rows(0.5, 0.5), [0, 1], {"normalize": "x"}, "normalize"),
    ],
)
def test_errors(probs, labels, options, problem):
    with pytest.raises(InputError, match=problem):
        estimate_transition(probs, torch.tensor(labels), **options)
