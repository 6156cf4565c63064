"""Layer-wise learning rates and surgical fine-tuning."""

import pytest
import torch

from unseen.errors import InputError
from unseen.networks.layers import layer_parameters
from unseen.shifts.generators import spurious
from unseen.training import Learner, train
from unseen.training.batched import Run, can_batch, train_many
from unseen.training.data import TrainingData
from unseen.training.system import build_optimizer, build_system, parameter_groups

LEARNER = Learner(
    steps=1,
    batch_size=16,
    learning_rate=0.1,
    optimizer="sgd",
    network="mlp(width=8)",
    keep="last",
    evaluations=1,
)


@pytest.fixture(scope="module")
def data():
    return TrainingData(spurious(size=200).split("agree-0.1"))


def moves(learner, data):
    """What one step adds to each parameter."""
    start = build_system(learner, data, 1).network.state_dict()
    return {name: value - start[name] for name, value in train(learner, data, seed=1).state.items()}


def test_each_layer_moves_less_than_the_one_above(data):
    whole, damped = moves(LEARNER, data), moves(LEARNER.replace(layer_decay=0.5), data)
    layers = layer_parameters(build_system(LEARNER, data, 1).network)
    for height, names in enumerate(reversed(layers)):
        for name in names:
            torch.testing.assert_close(damped[name], 0.5**height * whole[name], atol=1e-6, rtol=1e-3)
    assert len(layers) == 3


def test_groups_keep_the_order_of_parameters_and_the_objective_has_the_whole_rate(data):
    learner = LEARNER.replace(layer_decay=0.5, objective="cdann")
    system = build_system(learner, data, 1)
    optimizer = build_optimizer(learner, parameter_groups(learner, system))
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(found, system.parameters(), strict=True))
    assert [group["scale"] for group in optimizer.param_groups] == [0.25, 0.5, 1.0]
    assert len(build_optimizer(LEARNER, parameter_groups(LEARNER, system)).param_groups) == 1


@pytest.mark.parametrize(("layers", "trained"), [("0", {0}), ("1:", {1, 2}), ("-1", {2})])
@pytest.mark.parametrize("update", ["plain", "sam", "warm-start(head_steps=2)"])
def test_only_the_named_layers_move(layers, trained, update, data):
    learner = LEARNER.replace(layers=layers, update=update, optimizer="adamw", weight_decay=0.1, steps=5)
    moved = moves(learner, data)
    for position, names in enumerate(layer_parameters(build_system(learner, data, 1).network)):
        assert all(bool(moved[name].any()) == (position in trained) for name in names)


def test_a_penalty_on_features_that_are_not_trained_is_refused(data):
    with pytest.raises(InputError, match="acts on the features"):
        train(LEARNER.replace(objective="coral", layers="-1"), data)


def test_rates_by_layer_are_trained_alone_and_frozen_layers_give_the_same_in_a_stack(data):
    assert "learning rates of their own" in can_batch(LEARNER.replace(layer_decay=0.5), data)
    learner = LEARNER.replace(layers="1:", steps=5)
    for seed, found in enumerate(train_many([Run(learner, data, seed) for seed in (0, 1)])):
        alone = train(learner, data, seed=seed).state
        for name, value in alone.items():
            torch.testing.assert_close(found.state[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"layers": "top"}, "layers 'top'"),
    ],
)
def test_settings_out_of_range_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        Learner(**options)
