import math

import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.cdann import CDANN, class_balanced_mean
from unseen.shifts import Batch


def test_equals_two_players_with_their_own_losses(model, batch, built):
    objective = built("cdann(strength=0.7)")
    objective(model, batch).total.backward()
    features = model.featurizer(batch.x)
    label = nn.functional.cross_entropy(model.head(features), batch.y)
    means = []
    for c in range(3):
        own = batch.y == c
        guess = objective.discriminator(features[own] + objective.class_embedding[c])
        means.append(nn.functional.cross_entropy(guess, batch.domain[own]))
    domain = torch.stack(means).mean()
    strength = 0.7 * (2 / (1 + math.exp(-10)) - 1)
    players = {
        "featurizer": (label - strength * domain, model.featurizer),
        "head": (label, model.head),
        "discriminator": (domain, objective),
    }
    for loss, player in players.values():
        expected = torch.autograd.grad(loss, list(player.parameters()), retain_graph=True)
        torch.testing.assert_close([p.grad for p in player.parameters()], list(expected))


def test_soft_targets_of_a_half_count_in_both_classes():
    values = torch.tensor([1.0, 2.0, 6.0])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    expected = ((1 + 0.5 * 2) / 1.5 + (0.5 * 2 + 6) / 1.5) / 2  # the third class is not there
    torch.testing.assert_close(class_balanced_mean(values, targets), torch.tensor(expected))


def test_against_a_trained_discriminator_features_move_to_hide_the_domain_within_each_class(generator):
    count = 120
    domain, y = torch.arange(count) % 2, (torch.arange(count) // 2) % 2
    x = 0.3 * torch.randn(count, 2, generator=generator)
    x[:, 0] += 2.0 * y - 1
    x[:, 1] += 2.0 * domain - 1
    torch.manual_seed(0)
    model, objective = Network(nn.Linear(2, 4), 4, 2), CDANN(width=8, warmup_steps=0)
    objective.setup(features=4, classes=2, domains=2)
    batch = Batch(x=x, y=y, domain=domain, domains=2)

    def gap():
        features = model.featurizer(x).detach()
        means = [[features[(y == c) & (domain == d)].mean(0) for d in (0, 1)] for c in (0, 1)]
        return float(sum((first - second).norm() for first, second in means))

    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        objective(model, batch).parts["domain"].backward()
        optimizer.step()
    before = gap()
    for _ in range(20):
        slope = torch.autograd.grad(objective(model, batch).parts["domain"], model.featurizer.weight)[0]
        with torch.no_grad():
            model.featurizer.weight -= 0.05 * slope / slope.norm()
    assert gap() < 0.7 * before
