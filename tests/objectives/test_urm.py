import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.urm import URM
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


def test_joint_step_equals_two_players_with_their_own_losses(model, batch, built):
    objective = built("urm(strength=0.4, width=7, layers=2, noise_seed=5)")
    objective(model, batch).total.backward()
    features = model.featurizer(batch.x)
    random = np.random.default_rng(derive_seed(5, batch.step))
    noise = torch.from_numpy(random.uniform(-1, 1, tuple(features.shape)))
    real, made = objective.discriminator(noise), objective.discriminator(features.tanh())
    judge = nn.functional.binary_cross_entropy_with_logits
    told = judge(real, torch.ones_like(real)) + 0.4 * judge(made, torch.zeros_like(made))
    label = nn.functional.cross_entropy(model.head(features), batch.y)
    network = label + 0.4 * judge(made, torch.ones_like(made))
    for loss, player in ((network, model), (told, objective)):
        expected = torch.autograd.grad(loss, list(player.parameters()), retain_graph=True)
        torch.testing.assert_close([p.grad for p in player.parameters()], list(expected))


def test_steps_draw_new_noise_and_repeats_the_same(model, batch, built):
    objective = built("urm")
    first = objective(model, batch).parts["discriminator"]
    torch.testing.assert_close(objective(model, batch.again()).parts["discriminator"], first)
    batch.step += 1
    assert float(objective(model, batch).parts["discriminator"].detach()) != float(first.detach())


def test_features_spread_towards_a_uniform_distribution(generator):
    """Features that are bunched up at 0.1 in a single class spread out over (-1, 1)."""
    x = torch.randn(128, 1, generator=generator)
    y, domain = torch.zeros(128, dtype=torch.int64), torch.zeros(128, dtype=torch.int64)
    model = Network(nn.Linear(1, 1), 1, 2)
    nn.init.constant_(model.featurizer.weight, 0.1)
    torch.manual_seed(0)
    objective = URM(strength=1.0, width=16)
    objective.setup(features=1, classes=2, domains=1)
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.01, betas=(0.5, 0.9))

    def distance():
        """Largest difference from the uniform distribution function (Kolmogorov-Smirnov)."""
        values = model.featurizer(x).tanh().detach().flatten().sort().values
        return float((torch.arange(128) / 128 - (values + 1) / 2).abs().max())

    before = distance()
    for step in range(250):
        optimizer.zero_grad()
        objective(model, Batch(x=x, y=y, domain=domain, domains=1, step=step)).total.backward()
        optimizer.step()
    assert before > 0.4 and distance() < 0.5 * before


def test_errors():
    with pytest.raises(InputError, match=r"strength, width or layers: are -1, 100 and 1"):
        URM(strength=-1)
