import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.causirl import CausIRL, coral_distance, random_sides
from unseen.objectives.mmd import GAMMAS
from unseen.shifts.sampling import derive_seed


def coral(first, second):
    means = (first.mean(0) - second.mean(0)).square().mean()
    return means + (first.T.cov() - second.T.cov()).square().mean()


def mmd(first, second):
    def mean(one, other):
        distances = (one.unsqueeze(1) - other).square().sum(-1)
        return sum(torch.exp(-gamma * distances) for gamma in GAMMAS).mean()

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


@pytest.mark.parametrize("distance", [coral, mmd])
def test_loss_is_risk_plus_distance_of_two_mixtures(distance, model, batch, built, same_with_gradients):
    risk = sum(nn.functional.cross_entropy(model(p.x), p.y) for p in map(batch.of_domain, range(3))) / 3
    features = model.featurizer(batch.x)
    side = random_sides(batch.domain, 3, derive_seed(0, batch.step))
    expected = risk + 3 * distance(features[side == 0], features[side == 1])
    objective = built(f"causirl-{distance.__name__}(penalty_weight=3.0)")
    same_with_gradients(objective(model, batch).total, expected)


def test_a_side_holds_the_first_examples_of_each_domain_in_a_random_share(batch):
    shares = torch.zeros(3)
    for seed in range(200):
        side = random_sides(batch.domain, 3, seed)
        for d in range(3):
            own = side[batch.domain == d]
            assert torch.equal(own, own.sort().values)
            shares[d] += (1 - own.float()).mean() / 200
    assert not torch.equal(random_sides(batch.domain, 3, 0), random_sides(batch.domain, 3, 1))
    assert torch.equal(random_sides(batch.domain, 3, 0), random_sides(batch.domain, 3, 0))
    assert ((shares > 0.3) & (shares < 0.55)).all()


def test_an_empty_side_costs_nothing(model, batch):
    features = model.featurizer(batch.x)
    assert coral_distance(features, torch.zeros(22, dtype=torch.int64)) == 0


@pytest.mark.parametrize("name", ["causirl-coral", "causirl-mmd"])
def test_features_that_shift_with_the_domain_cost_more(name, batch, built):
    network = Network(nn.Identity(), 6, 3).double()
    costs = []
    for shift in (4.0, 0.0):
        moved = batch.map(lambda t: t)
        moved.x = batch.x + (shift - 0.5) * batch.domain.unsqueeze(1)
        total = 0.0
        for step in range(30):
            moved.step = step
            total += float(built(name)(network, moved).parts["penalty"])
        costs.append(total)
    assert costs[1] < 0.9 * costs[0]


def test_unknown_distance():
    with pytest.raises(InputError, match=r"distance 'mean'.*is not known"):
        CausIRL(distance="mean")
