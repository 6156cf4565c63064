import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.generators import spurious
from unseen.training import Learner, train
from unseen.training.data import TrainingData
from unseen.training.system import build_system


def made(spec):
    objective = objectives.build(spec)
    network = objective.make_network(lambda: Network(nn.Linear(4, 5), 5, 3), domains=1)
    return objective, network


@pytest.fixture
def batch(generator):
    zeros = torch.zeros(8).long()
    return Batch(x=torch.randn(8, 4, generator=generator), y=torch.arange(8) % 3, domain=zeros, domains=1)


def test_penalty_is_half_the_squared_distance_and_half_the_squared_head(batch):
    objective, network = made("l2-sp(penalty_weight=2.0, head_weight=0.5)")
    assert objective(network, batch).parts["distance"] == 0
    batch.step = 1
    with torch.no_grad():
        network.featurizer.weight.add_(0.1)
    risk = nn.functional.cross_entropy(network(batch.x), batch.y)
    head = sum(p.square().sum() for p in network.head.parameters())
    loss = objective(network, batch)
    torch.testing.assert_close(loss.parts["distance"], torch.tensor(20 * 0.01))
    torch.testing.assert_close(loss.total, risk + 0.2 + 0.25 * head)


def test_the_pull_is_towards_the_start(batch):
    objective, network = made("l2-sp(penalty_weight=2.0, head_weight=0.0)")
    batch.step = 1
    with torch.no_grad():
        network.featurizer.weight.add_(0.1)
    (plain,) = torch.autograd.grad(
        nn.functional.cross_entropy(network(batch.x), batch.y), [network.featurizer.weight]
    )
    (pulled,) = torch.autograd.grad(objective(network, batch).total, [network.featurizer.weight])
    torch.testing.assert_close(pulled - plain, torch.full((5, 4), 0.2))


def test_frozen_parameters_have_no_distance(batch):
    objective, network = made("l2-sp")
    network.featurizer.weight.requires_grad_(False).add_(1)
    assert objective(network, batch).parts["distance"] == 0


def test_the_reference_is_what_a_run_begins_from():
    data = TrainingData(spurious(size=200).split("agree-0.1"))
    learner = Learner(
        objective="l2-sp(penalty_weight=100.0)",
        steps=40,
        batch_size=16,
        network="mlp(width=8, depth=1)",
        keep="last",
    )
    other = build_system(learner, data, 5).network.state_dict()
    state = train(learner, data, seed=0, start=other).state
    for seed, near in ((5, True), (0, False)):
        start = build_system(learner, data, seed).network.state_dict()
        distance = float((state["featurizer.1.weight"] - start["featurizer.1.weight"]).norm())
        assert (distance < 0.2) == near


def test_features_stay_near_their_start_the_more_it_weighs():
    data = TrainingData(spurious(size=200).split("agree-0.1"))
    moved = []
    for weight in (0.0, 1.0, 10.0):
        learner = Learner(
            objective=f"l2-sp(penalty_weight={weight})", steps=60, batch_size=16, learning_rate=0.02,
            network="mlp(width=8, depth=1)", keep="last",
        )  # fmt: skip
        start = build_system(learner, data, 0).network.state_dict()
        state = train(learner, data, seed=0).state
        moved.append(float((state["featurizer.1.weight"] - start["featurizer.1.weight"]).norm()))
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


@pytest.mark.parametrize("spec", ["l2-sp(penalty_weight=-1)", "l2-sp(head_weight=-1)"])
def test_weights_below_zero_are_refused(spec):
    with pytest.raises(InputError, match="weight"):
        objectives.build(spec)
