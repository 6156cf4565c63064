import math

import pytest
import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.group_dro import GroupDRO, reweighted
from unseen.shifts import Batch


def batch_of(generator, domains=3):
    return Batch(
        x=torch.randn(12, 4, generator=generator),
        y=torch.randint(3, (12,), generator=generator),
        domain=torch.arange(12) % domains,
        domains=domains,
    )


def test_several_steps_equal_algorithm_1_written_out(generator):
    model = Network(nn.Identity(), 4, 3)
    objective = GroupDRO(step_size=0.5)
    objective.setup(features=4, classes=3, domains=3)
    weights = [1 / 3] * 3
    for _ in range(4):
        batch = batch_of(generator)
        losses = []
        for d in range(3):
            part = batch.of_domain(d)
            losses.append(nn.functional.cross_entropy(model(part.x), part.y))
            weights[d] *= math.exp(0.5 * float(losses[d].detach()))
        weights = [w / sum(weights) for w in weights]
        expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
        loss = objective(model, batch).total
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, model.head.weight), torch.autograd.grad(expected, model.head.weight)
        )
        torch.testing.assert_close(objective.weights, torch.tensor(weights))


def test_the_weight_of_the_worst_domain_tends_to_one():
    weights = torch.full((3,), 1 / 3)
    for _ in range(400):
        weights = reweighted(weights, torch.tensor([1.0, 1.2, 1.1]), 0.5)
    assert weights.sum() == pytest.approx(1) and weights.argmax() == 1 and weights[1] > 0.99


def test_repeated_batches_keep_the_weights(generator):
    model, batch = Network(nn.Identity(), 4, 3), batch_of(generator)
    objective = GroupDRO()
    objective.setup(features=4, classes=3, domains=3)
    first = objective(model, batch).total
    weights = objective.weights.clone()
    torch.testing.assert_close(objective(model, batch.again()).total, first)
    assert torch.equal(objective.weights, weights)
