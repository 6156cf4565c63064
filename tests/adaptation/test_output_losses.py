import math

import torch

from unseen.adaptation.output_losses import (
    information,
    marginal_entropy,
    soft_cross_entropy,
    soft_likelihood_ratio,
    softmax_entropy,
    symmetric_cross_entropy,
    unit_range,
)


def test_entropies_of_known_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(softmax_entropy(logits), torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(soft_cross_entropy(logits[:1], logits[1:]), torch.tensor([math.log(4)]))
    torch.testing.assert_close(soft_cross_entropy(logits, logits), softmax_entropy(logits))


def test_symmetric_cross_entropy_is_symmetric(generator):
    first, second = torch.randn(2, 5, 3, generator=generator)
    found = symmetric_cross_entropy(first, second)
    torch.testing.assert_close(found, symmetric_cross_entropy(second, first))
    p, q = first.softmax(1), second.softmax(1)
    torch.testing.assert_close(found, -(p * q.log() + q * p.log()).sum(1) / 2)


def test_marginal_entropy_is_that_of_the_mean(generator):
    logits = torch.randn(7, 4, generator=generator)
    mean = logits.softmax(1).mean(0)
    torch.testing.assert_close(marginal_entropy(logits), -(mean * mean.log()).sum())
    assert torch.isfinite(marginal_entropy(1e6 * logits))


def test_information_is_largest_for_sure_and_balanced_predictions():
    sure = 100 * torch.eye(4)
    torch.testing.assert_close(information(sure), torch.tensor(math.log(4)))
    assert float(information(sure[:1].repeat(4, 1)).abs()) < 1e-5  # one class for all
    assert float(information(torch.zeros(4, 4)).abs()) < 1e-6  # unsure of all


def test_the_soft_likelihood_ratio_is_the_negative_log_odds(generator):
    p = torch.randn(6, 3, generator=generator).softmax(1)
    expected = torch.stack([-sum(v * torch.log(v / (1 - v) + 1e-5) for v in row) for row in p])
    torch.testing.assert_close(soft_likelihood_ratio(p.log()), expected)
    assert torch.isfinite(soft_likelihood_ratio(torch.tensor([[1e4, 0.0]]))).all()


def test_the_unit_range_of_equal_values_is_zero():
    assert torch.equal(unit_range(torch.full((3,), 2.0)), torch.zeros(3))
    assert torch.equal(unit_range(torch.tensor([1.0, 3.0, 2.0])), torch.tensor([0.0, 1.0, 0.5]))
