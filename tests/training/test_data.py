import importlib
from typing import ClassVar

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives import Loss, Objective
from unseen.registry import objectives
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, train
from unseen.training.batched import can_batch
from unseen.training.data import TrainingData


class Agreement(Objective):
    """Cross-entropy, and unlabelled examples drawn to one side; remembers what it was given."""

    needs_unlabelled = True
    seen: ClassVar[list[torch.Tensor]] = []

    def forward(self, model, batch):
        assert len(batch.unlabelled) == len(batch)
        Agreement.seen.append(batch.unlabelled.clone())
        risk = nn.functional.cross_entropy(model(batch.x), batch.y)
        return Loss(risk + 0.1 * model(batch.unlabelled)[:, 0].pow(2).mean())


@pytest.fixture
def registered():
    objectives.register("agreement-of-a-test", summary="for a test")(Agreement)
    Agreement.seen = []
    yield "agreement-of-a-test"
    del objectives._entries["agreement-of-a-test"]


def shift():
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(120) % 2, torch.arange(120) // 40
    x = torch.randn(120, 3, generator=generator)
    x[:, 0] = labels + 10.0 * torch.arange(120)  # tells which row it is
    return from_arrays(x.numpy(), labels.numpy(), domain.numpy())


class Interrupted(Exception):
    pass


def test_unlabelled_rows_come_from_their_own_and_only_decide_by_seed_and_step(registered):
    split = shift().split("2", unlabelled=0.5, seed=1)
    data = TrainingData(split)
    learner = Learner(objective=registered, network="linear", steps=6, batch_size=8)
    train(learner, data, seed=4)
    first = [batch.clone() for batch in Agreement.seen]
    allowed = data.batch(split.train[:4], 0, unlabelled=split.unlabelled).unlabelled
    for batch in first:
        assert torch.cdist(batch, allowed).min(1).values.max() == 0
    epoch = torch.cat(first)[: len(split.unlabelled)]
    assert len(epoch.unique(dim=0)) == len(split.unlabelled)  # without replacement within an epoch
    Agreement.seen = []
    train(learner, data, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, Agreement.seen, strict=True))
    Agreement.seen = []
    train(learner, data, seed=5)
    assert not torch.equal(first[0], Agreement.seen[0])


def test_labels_of_unlabelled_rows_change_nothing(registered):
    learner = Learner(objective=registered, network="linear", steps=6, batch_size=8)
    states = []
    for turned in (False, True):
        data = shift()
        split = data.split("2", unlabelled=0.5)
        if turned:
            data.labels[split.unlabelled] = 1 - data.labels[split.unlabelled]
        states.append(train(learner, TrainingData(split), seed=0).state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_with_unlabelled_data_resumes_exactly(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("unseen.training.fit"), "SECONDS_BETWEEN_CHECKPOINTS", 0)
    learner = Learner(objective=registered, network="linear", steps=12, batch_size=8, evaluations=6)
    data = TrainingData(shift().split("2", unlabelled=0.3))

    def interrupt(done, steps):
        if done == 7:
            raise Interrupted

    whole = train(learner, data, seed=0).state
    with pytest.raises(Interrupted):
        train(learner, data, seed=0, checkpoint=tmp_path / "run", progress=interrupt)
    resumed = train(learner, data, seed=0, checkpoint=tmp_path / "run").state
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_without_unlabelled_rows_the_learner_is_refused(registered):
    learner = Learner(objective=registered, network="linear", steps=2)
    with pytest.raises(InputError, match="without labels, but the split has none.*unlabelled=0.5"):
        train(learner, TrainingData(shift().split("2")), seed=0)


def test_a_learner_with_unlabelled_data_goes_alone(registered):
    data = TrainingData(shift().split("2", unlabelled=0.5))
    learner = Learner(objective=registered, network="linear", steps=4, batch_size=8)
    assert "without labels" in can_batch(learner, data)
    assert can_batch(learner.replace(objective="erm"), data) is None
