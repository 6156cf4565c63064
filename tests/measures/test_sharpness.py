import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.measures.sharpness import epsilon_sharpness, inconsistency_curve, loss_curve


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


@pytest.fixture
def examples(generator):
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    return [(x[:15], y[:15]), (x[15:], y[15:])]


def loss(network, examples):
    network.eval()
    x, y = (torch.cat(parts) for parts in zip(*examples, strict=True))
    return nn.functional.cross_entropy(network(x), y)


def test_sharpness_of_a_small_box_is_the_slope_and_the_network_stays(network, examples):
    before = copy.deepcopy(network.state_dict())
    found = epsilon_sharpness(network, examples, epsilon=1e-5)
    assert network.training and all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    value = loss(network, examples)
    slopes = torch.autograd.grad(value, list(network.parameters()))
    rise = sum((s.abs() * (p.abs() + 1)).sum() for s, p in zip(slopes, network.parameters(), strict=True))
    assert found == pytest.approx(float((100 * 1e-5 * rise / (1 + value)).detach()), rel=1e-2)


def test_sharpness_is_no_less_than_what_random_points_of_the_box_find(network, examples, generator):
    found = epsilon_sharpness(network, examples, epsilon=0.05)
    value = float(loss(network, examples).detach())
    for _ in range(20):
        other = copy.deepcopy(network)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.05 * (p.abs() + 1) * (2 * torch.rand(p.shape, generator=generator) - 1))
        assert found >= 100 * (float(loss(other, examples).detach()) - value) / (1 + value)


def test_curves(network, examples, generator):
    other = [(x + 1, y) for x, y in examples]
    rising = loss_curve(network, examples, [0.0, 0.1, 0.2])
    assert rising[0] == pytest.approx(float(loss(network, examples).detach())) and (rising.diff() > 0).all()
    gap = inconsistency_curve(network, examples, other, [0.0, 0.1, 0.2])
    assert gap[0] == pytest.approx(abs(float((loss(network, other) - loss(network, examples)).detach())))
    assert (gap.diff() > 0).all()
    same = inconsistency_curve(network, examples, examples, [0.0, 0.1])
    assert same.abs().max() < 1e-9
    torch.testing.assert_close(gap, inconsistency_curve(network, other, examples, [0.0, 0.1, 0.2]))


def test_what_cannot_be_is_refused(network, examples):
    with pytest.raises(InputError, match="not positive"):
        epsilon_sharpness(network, examples, epsilon=0.0)
    for p in network.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that trains"):
        loss_curve(network, examples, [0.1])
