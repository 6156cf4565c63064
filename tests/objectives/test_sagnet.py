import math

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.sagnet import SagNet, content_and_style, randomise_content, randomise_style
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


def slow_loss(model, style_head, batch, weight):
    """Example by example, as the equations have it."""
    features = model.featurizer(batch.x)
    random = np.random.default_rng(derive_seed(0, batch.step))
    shares = random.random((len(batch), 1))[:, 0]
    styles, contents = random.permutation(len(batch)), random.permutation(len(batch))
    total = 0.0
    for i, z in enumerate(features):
        other, content = features[styles[i]], features[contents[i]]
        deviation = (z.var() + 1e-5).sqrt()
        mean = shares[i] * z.mean() + (1 - shares[i]) * other.mean()
        variance = shares[i] * z.var() + (1 - shares[i]) * other.var() + 1e-5
        logits = model.head((z - z.mean()) / deviation * variance.sqrt() + mean)
        normal = (content - content.mean()) / (content.var() + 1e-5).sqrt()
        guess = style_head(normal.detach() * deviation + z.mean())
        total = total + nn.functional.cross_entropy(logits, batch.y[i])
        total = total + nn.functional.cross_entropy(guess, batch.y[i])
        total = total - weight * guess.log_softmax(0).mean()
    return total / len(batch)


def test_value_equals_the_equations_written_out(model, batch, built):
    objective = built("sagnet", adversarial_weight=0.7)
    expected = slow_loss(model, objective.style_head, batch, 0.7)
    torch.testing.assert_close(objective(model, batch).total, expected)


def test_each_term_trains_whom_it_should(model, batch, built):
    objective = built("sagnet")
    parts = objective(model, batch).parts
    players = [list(m.parameters()) for m in (model.featurizer, model.head, objective.style_head)]

    def moves(part):
        found = [torch.autograd.grad(parts[part], p, retain_graph=True, allow_unused=True) for p in players]
        return [any(g is not None and bool(g.any()) for g in own) for own in found]

    assert moves("content") == [True, True, False]
    assert moves("style") == [False, False, True]
    assert moves("adversary") == [True, False, False]


def test_own_style_changes_nothing_and_the_partners_replaces_it(generator):
    features = torch.randn(6, 5, generator=generator).double()
    partner, parts = torch.arange(6).roll(1), content_and_style(features)
    torch.testing.assert_close(randomise_style(*parts, partner, torch.ones(6, 1).double()), features)
    swapped = randomise_style(*parts, partner, torch.zeros(6, 1).double())
    for found, expected in zip(content_and_style(swapped)[1:], parts[1:], strict=True):
        torch.testing.assert_close(found, expected[partner], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(randomise_content(*parts, torch.arange(6)), features)


def test_the_class_is_kept_in_content_and_driven_out_of_style(generator):
    """Both tell the class: the contrast of two inputs, and their common mean."""
    y = torch.arange(240) % 2
    sign = (2.0 * y - 1).unsqueeze(1)
    x = (
        torch.tensor([[1.0, -1.0, 0.0, 0.0]]) * sign
        + 2 * sign
        + 0.3 * torch.randn(240, 4, generator=generator)
    )
    told = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        model, objective = Network(nn.Linear(4, 8), 8, 2), SagNet(adversarial_weight=weight)
        objective.setup(features=8, classes=2, domains=2)
        optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.01)
        for step in range(300):
            optimizer.zero_grad()
            loss = objective(model, Batch(x=x, y=y, domain=y, domains=2, step=step))
            loss.total.backward()
            optimizer.step()
        told.append(float(loss.parts["style"].detach()))
        assert (model(x).argmax(1) == y).float().mean() > 0.95
    assert told[0] < 0.3
    assert told[1] > 0.6


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_errors(weight):
    with pytest.raises(InputError, match="adversarial_weight"):
        SagNet(adversarial_weight=weight)
