import math

import pytest
import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.dann import DANN, reverse_gradient
from unseen.shifts import Batch


def problem(generator, step=10**6, **options):
    torch.manual_seed(0)
    model = Network(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), 6, 3)
    objective = DANN(width=7, **options)
    objective.setup(features=6, classes=3, domains=2)
    batch = Batch(
        x=torch.randn(10, 5, generator=generator),
        y=torch.randint(3, (10,), generator=generator),
        domain=torch.arange(10) % 2,
        domains=2,
        step=step,
    )
    return model, objective, batch


def test_reversal_is_the_identity_with_a_negative_gradient():
    x = torch.randn(3, requires_grad=True)
    out = reverse_gradient(x, 0.3)
    assert torch.equal(out, x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((3,), -0.3))


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_joint_step_equals_two_players_with_their_own_losses(strength, generator):
    model, objective, batch = problem(generator, strength=strength)
    objective(model, batch).total.backward()
    features = model.featurizer(batch.x)
    label = nn.functional.cross_entropy(model.head(features), batch.y)
    domain = nn.functional.cross_entropy(objective.discriminator(features), batch.domain)
    players = {
        "featurizer": (label - strength * domain, model.featurizer),
        "head": (label, model.head),
        "discriminator": (domain, objective.discriminator),
    }
    for loss, player in players.values():
        expected = torch.autograd.grad(loss, list(player.parameters()), retain_graph=True)
        torch.testing.assert_close([p.grad for p in player.parameters()], list(expected))


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (25, 0.25), (100, 1.0), (500, 1.0)])
def test_strength_grows_as_published(step, share, generator):
    model, objective, batch = problem(generator, step=step, warmup_steps=100)
    expected = 2 / (1 + math.exp(-10 * share)) - 1
    loss = objective(model, batch)
    found = torch.autograd.grad(loss.parts["domain"], model.featurizer[0].weight)[0]
    features = model.featurizer(batch.x)
    guess = nn.functional.cross_entropy(objective.discriminator(features), batch.domain)
    plain = torch.autograd.grad(guess, model.featurizer[0].weight)[0]
    torch.testing.assert_close(found, -expected * plain)


def test_trained_features_hide_the_domain(generator):
    """Two inputs: one tells the class, one the domain. What ERM shows of it must go."""
    count = 200
    domain, y = torch.arange(count) % 2, (torch.arange(count) // 2) % 2
    x = 0.3 * torch.randn(count, 2, generator=generator)
    x[:, 0] += 2.0 * y - 1
    x[:, 1] += 2.0 * domain - 1
    separations = []
    for strength in (0.0, 1.0):
        torch.manual_seed(0)
        model = Network(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), 4, 2)
        objective = DANN(strength=strength, width=8, warmup_steps=0)
        objective.setup(features=4, classes=2, domains=2)
        optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.01)
        for step in range(300):
            optimizer.zero_grad()
            objective(model, Batch(x=x, y=y, domain=domain, domains=2, step=step)).total.backward()
            optimizer.step()
        features = model.featurizer(x).detach()
        gap = features[domain == 0].mean(0) - features[domain == 1].mean(0)
        separations.append(float(gap.norm()))
        assert (model(x).argmax(1) == y).float().mean() > 0.95
    assert separations[1] < 0.3 * separations[0]
