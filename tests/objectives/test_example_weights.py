import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.objectives.erm import ERM
from unseen.objectives.example_weights import (
    Table,
    attribute_groups,
    balanced_rows,
    balancing_weights,
    effective_sample_size,
    reweighted,
)
from unseen.shifts.arrays import from_arrays
from unseen.shifts.shift import Shift
from unseen.shifts.tables import from_dataframe
from unseen.testing import ContractError, check_objective
from unseen.testing.toy import ToyStage, toy_batch
from unseen.training import Learner, train
from unseen.training.batched import Run, can_batch, train_many
from unseen.training.data import TrainingData


def test_balancing_weights_give_every_group_the_same_mass_and_have_mean_one():
    groups = torch.tensor([0, 0, 0, 5, 5, 9])
    weights = balancing_weights(groups)
    assert weights.tolist() == pytest.approx([2 / 3] * 3 + [1, 1, 2])
    assert weights.mean() == 1


def test_balanced_rows_are_as_many_of_every_group_and_differ_between_draws():
    groups = torch.tensor([0] * 50 + [1] * 7 + [2] * 20)
    generator = torch.Generator().manual_seed(0)
    first, second = balanced_rows(groups, generator), balanced_rows(groups, generator)
    assert groups[first].bincount().tolist() == [7, 7, 7] and len(first.unique()) == 21
    assert first.sort().values.tolist() != second.sort().values.tolist()


def test_effective_sample_size():
    assert effective_sample_size(torch.full((8,), 3.0)) == 8
    assert effective_sample_size(torch.tensor([0.0, 5.0, 0.0])) == 1


def test_groups_are_labels_crossed_with_the_attribute():
    stage = ToyStage(None, 0, "cpu")
    rows = torch.arange(stage.size)
    batch = toy_batch("cpu")
    groups = attribute_groups(stage, rows)
    pairs = {(int(y), int(g)): int(i) for y, g, i in zip(batch.y, batch.group, groups, strict=True)}
    assert len(pairs) == len(groups.unique()) == int(groups.max()) + 1


def test_weights_multiply_those_that_are_there():
    batch, weights = toy_batch("cpu"), torch.rand(36)
    once = reweighted(batch, weights)
    assert torch.equal(once.weight, weights) and batch.weight is None
    assert torch.equal(reweighted(once, weights).weight, weights**2)


def test_a_table_is_read_and_written_by_id():
    table, batch = Table(), toy_batch("cpu").take(torch.tensor([3, 30, 7]))
    table.fill(torch.arange(40.0))
    assert table.of(batch).tolist() == [3, 30, 7]
    table.set(batch, torch.tensor([-1.0, -2.0, -3.0]))
    assert table.values[[3, 30, 7, 8]].tolist() == [-1, -2, -3, 8]


# ---- weights that the data brings ----


def weighted_shift(weight):
    generator = torch.Generator().manual_seed(0)
    y, domain = torch.arange(120) % 2, torch.arange(120) % 3
    x = torch.randn(120, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)
    return Shift("toy", "array", x, y, domain, ("a", "b"), ("p", "q", "r"), weight=weight)


def test_weights_of_the_data_reach_every_batch_alone_and_stacked():
    weight = torch.rand(120, generator=torch.Generator().manual_seed(1)) * 2
    learner = Learner(network="mlp(width=4, depth=1)", steps=12, batch_size=8, keep="last")
    weighted, plain = (TrainingData(weighted_shift(w).split("r")) for w in (weight, None))
    assert torch.equal(weighted.batch(torch.tensor([5, 2]), 0).weight, weight[[5, 2]])
    alone = train(learner, weighted).state
    assert any(not torch.allclose(v, alone[n]) for n, v in train(learner, plain).state.items())
    assert can_batch(learner, weighted) is None
    together = train_many([Run(learner, weighted), Run(learner, weighted, 1), Run(learner, plain)])[0].state
    assert all(torch.allclose(v, together[n], atol=1e-4) for n, v in alone.items())


def test_weights_change_the_key_of_the_data_and_follow_its_rows():
    weight = torch.arange(120.0)
    assert weighted_shift(None).fingerprint != weighted_shift(weight).fingerprint
    assert weighted_shift(weight).subset(torch.tensor([7, 3])).weight.tolist() == [7, 3]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_weights_below_zero_or_missing_are_refused(bad):
    with pytest.raises(InputError, match="weights below 0 or missing"):
        weighted_shift(torch.full((120,), bad))


def test_methods_that_do_not_carry_weights_through_refuse_them():
    data = TrainingData(weighted_shift(torch.ones(120)).split("r"))
    with pytest.raises(InputError, match="'mixup': has terms that do not know weights"):
        train(Learner(objective="mixup", steps=1), data)
    with pytest.raises(InputError, match="'fishr': has terms that do not know weights"):
        train(Learner(objective="fishr", steps=1), data)


def test_arrays_and_tables_bring_weights():
    import pandas as pd

    shift = from_arrays(torch.randn(4, 2), [0, 1, 0, 1], list("aabb"), weight=[1, 2, 0.5, 0])
    assert shift.weight.tolist() == [1, 2, 0.5, 0]
    frame = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": list("uvuv"), "d": list("aabb"), "w": [1, 2, 0.5, 0]})
    shift = from_dataframe(frame, "y", "d", weight="w")
    assert shift.weight.tolist() == [1, 2, 0.5, 0] and list(shift.inputs.columns) == ["x"]


# ---- what the contract finds ----


class HalfWeighted(ERM):
    """Claims to carry weights, but its penalty does not."""

    def forward(self, model, batch):
        return Loss(super().forward(model, batch).total + model(batch.x).square().mean())


class BeginsByChance(ERM):
    def begin(self, stage):
        with torch.no_grad():
            stage.network.head.bias.add_(torch.rand(()))


class FinishesBroken(ERM):
    def finish(self, stage):
        with torch.no_grad():
            stage.network.head.bias.fill_(float("nan"))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (HalfWeighted, "feels an example of weight zero"),
        (BeginsByChance, "begins differently|uses torch's global random state|is not decided by the seed"),
        (FinishesBroken, "leaves a network whose logits are not finite"),
    ],
)
def test_an_objective_that_breaks_these_rules_is_told(broken, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_objective(broken)
