"""Stages of a run: what happens before and after its training, and what an interruption leaves behind."""

import importlib

import pytest
import torch
from test_fit import SMALL, toy

from unseen.objectives.erm import ERM
from unseen.objectives.example_weights import Table
from unseen.registry import objectives
from unseen.training import Hardware, Learner, train
from unseen.training.batched import can_batch, group_runs
from unseen.training.data import TrainingData
from unseen.training.grouping import Run
from unseen.training.stages import has_stages

module = importlib.import_module("unseen.training.fit")


class _Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def data():
    return TrainingData(toy().split("d"))


@pytest.fixture
def named():
    """Register an objective for the length of a test."""
    names = []

    def register(name, target):
        objectives.register(name, summary="test")(target)
        names.append(name)

    yield register
    for name in names:
        objectives._entries.pop(name)


class _Staged(ERM):
    """Trains another learner first, keeps a value a row and starts from its weights; zeroes the bias at the end."""

    calls: list

    def __init__(self):
        super().__init__()
        self.table = Table()

    def begin(self, stage):
        self.calls.append("begin")
        other = stage.train("first", steps=60)
        stage.network.load_state_dict(other.state_dict())
        self.table.fill(torch.arange(float(stage.size)), stage.device)

    def forward(self, model, batch):
        assert torch.equal(self.table.of(batch), batch.ids.float())
        return super().forward(model, batch)

    def finish(self, stage):
        self.calls.append("finish")
        with torch.no_grad():
            stage.network.head.bias.zero_()


class _First(ERM):
    steps: list
    stop: int | None = None

    def forward(self, model, batch):
        if batch.step == self.stop:
            raise _Interrupted
        self.steps.append(batch.step)
        return super().forward(model, batch)


@pytest.fixture
def staged(named, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    _Staged.calls, _First.steps, _First.stop = [], [], None
    named("staged", _Staged)
    named("first", _First)
    return Learner(objective="staged", **SMALL)


def test_begin_comes_before_the_first_step_and_finish_has_the_last_word(data, staged):
    result = train(staged, data)
    assert _Staged.calls == ["begin", "finish"] and _First.steps == list(range(60))
    assert not result.state["head.bias"].any()
    assert train(staged.replace(averaging="ema"), data).state["head.bias"].eq(0).all()


def test_the_state_of_the_objective_comes_with_the_result(data, staged):
    assert torch.equal(train(staged, data).objective["table.values"], torch.arange(400.0))
    assert train(Learner(**SMALL), data).objective == {}


@pytest.mark.parametrize("when", ["in the first training", "in the second"])
def test_a_run_that_is_killed_goes_on_where_it_was(data, staged, tmp_path, when):
    whole = train(staged, data, seed=1)
    path = tmp_path / "run.ckpt"
    _First.steps, _Staged.calls = [], []

    def stop(step, steps):
        if step == 41:
            raise _Interrupted

    if when == "in the second":
        with pytest.raises(_Interrupted):
            train(staged, data, seed=1, checkpoint=path, progress=stop)
        assert path.exists()
    else:
        _First.stop = 41
        with pytest.raises(_Interrupted):
            train(staged, data, seed=1, checkpoint=path)
        assert not path.exists() and (tmp_path / "run.ckpt.begin-1").exists()
        _First.stop = None
    before, _First.steps = _First.steps, []
    resumed = train(staged, data, seed=1, checkpoint=path)
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())
    if when == "in the second":
        assert before == list(range(60)) and not _First.steps  # the first training is not done again
        assert _Staged.calls == ["begin", "finish"]
    else:
        assert _First.steps and min(_First.steps) > 30
    assert [found.name for found in tmp_path.iterdir()] == ["run.ckpt"]


def test_another_seed_trains_another_first_network(data, staged):
    learner = staged.replace(steps=1, learning_rate=1e-9)
    one, other, again = (train(learner, data, seed=seed).state["head.weight"] for seed in (0, 1, 0))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-3)


def test_runs_in_stages_are_trained_one_by_one(data, staged):
    assert "before or after the training" in can_batch(staged, data)
    assert [len(program) for program in group_runs([Run(staged, data), Run(staged, data, 1)])] == [1, 1]
    assert not _Staged.calls  # it was not even tried
    assert not has_stages(ERM()) and has_stages(_Staged())


def test_two_processes_agree_on_what_the_stages_decide(data):
    """Each process begins by itself; gradients are averaged over one set of weights by example."""
    learner = Learner(objective="jtt(first=0.05)", **SMALL)
    result = train(learner, data, hardware=Hardware("cpu", 2))
    assert result.facts["steps"] == 60
    assert torch.equal(result.objective["weights.values"], train(learner, data).objective["weights.values"])


def test_a_table_takes_the_shape_of_a_saved_one():
    table, other = Table(), Table()
    table.fill(torch.eye(3))
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.values, torch.eye(3))
