import sqlite3

import numpy as np
import pytest
import torch
from torch import nn

from unseen.arena import BackboneArena, Budget, Candidate, LinearProbe, Retrieval, Score, Task, zscore_ranking
from unseen.arena.store import ScoreStore
from unseen.errors import InputError

BUDGET = Budget(trials=2, steps=30)


@pytest.fixture
def arena(toy, toy_shift):
    shift = toy_shift()
    pool = [toy("all", 6, architecture="wide", data_size=10), toy("three", 3), toy("one", 1)]
    return BackboneArena(pool, [LinearProbe(shift), Retrieval(shift)], BUDGET, seeds=(0, 1))


def test_a_row_a_backbone_task_setting_metric_and_seed(arena):
    told = []
    frame = arena.run(report=lambda *what: told.append(what))
    assert len(frame) == 3 * 2 * (1 + 4)
    assert not frame.duplicated(["backbone", "task", "setting", "metric", "seed"]).any()
    assert told[0] == ("all: probe", 0, 12) and told[-1] == ("done", 12, 12)
    about = frame.drop_duplicates("backbone").set_index("backbone")
    assert about.params.tolist() == [36] * 3 and about.flops.tolist() == [2 * 36] * 3
    assert about.features.tolist() == [6, 3, 1]
    assert (
        about.architecture["all"] == "wide"
        and about.data_size["all"] == 10
        and np.isnan(about.data_size["one"])
    )
    assert list(zscore_ranking(frame).index)[-1] == "one"


def test_finished_runs_are_not_run_again_and_a_killed_comparison_goes_on(arena, tmp_path, monkeypatch):
    whole = arena.run()
    calls = []
    measure = LinearProbe.measure

    def dying(self, candidate, budget, seed):
        calls.append((candidate.name, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, candidate, budget, seed)

    monkeypatch.setattr(LinearProbe, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        arena.run(tmp_path / "scores.sqlite")
    resumed = arena.run(tmp_path / "scores.sqlite")
    assert calls == [("all", 0), ("all", 1), ("three", 0), ("three", 1), ("three", 1), ("one", 0), ("one", 1)]
    assert resumed.equals(whole)
    assert arena.run(tmp_path / "scores.sqlite").equals(whole) and len(calls) == 7


def test_other_weights_budget_or_data_are_other_runs(arena, toy, toy_shift, tmp_path):
    def key(candidate=None, shift=None, budget=BUDGET, seed=0):
        candidate, task = candidate or toy("a"), LinearProbe(shift or toy_shift())
        return BackboneArena([candidate], [task], budget)._run_key(candidate, task, seed)

    changed = toy("a")
    with torch.no_grad():
        changed.encoder.layer.weight[0, 0] += 1e-6
    keys = [
        key(), key(changed), key(toy("a", 5)), key(shift=toy_shift(seed=1)), key(budget=Budget(trials=3)), key(seed=1)
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == key(toy("another name"))


def test_features_are_computed_once_for_all_tasks_and_seeds(toy_shift):
    class Counting(nn.Module):
        rows = 0

        def forward(self, x):
            Counting.rows += len(x)
            return x

    shift = toy_shift()
    entrant = Candidate("counting", Counting(), reads="array", keep_features=False)
    BackboneArena([entrant], [LinearProbe(shift), Retrieval(shift)], BUDGET, seeds=(0, 1, 2)).run()
    assert Counting.rows == 240 + 3  # and single rows that tell width and FLOPs


def test_features_on_disk_serve_the_next_arena(toy_shift, tmp_path, monkeypatch):
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path))
    shift = toy_shift()

    def run():
        entrant = Candidate("linear", nn.Linear(6, 2), reads="array")
        with torch.no_grad():
            entrant.encoder.weight.copy_(torch.eye(2, 6))
            entrant.encoder.bias.zero_()
        return BackboneArena([entrant], [LinearProbe(shift)], BUDGET, seeds=(0,)).run()

    first = run()
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    monkeypatch.setattr("unseen.networks.feature_cache._complete", None)  # computing again would call it
    assert run().equals(first)


def test_names_may_come_with_the_backbones(toy, toy_shift):
    pool = {"yours": toy("x"), "mine": toy("y", 3)}
    assert [c.name for c in BackboneArena(pool, [LinearProbe(toy_shift())]).candidates] == ["yours", "mine"]


def test_two_runs_of_one_key_are_refused(toy, toy_shift):
    shift = toy_shift()
    with pytest.raises(InputError, match="backbone 'a': is there twice"):
        BackboneArena([toy("a"), toy("a", 3)], [LinearProbe(shift)])
    with pytest.raises(InputError, match="task 'probe: toy': is there twice"):
        BackboneArena([toy("a")], [LinearProbe(shift), LinearProbe(toy_shift(seed=1))])
    with pytest.raises(InputError, match="seed '0': is there twice"):
        BackboneArena([toy("a")], [LinearProbe(shift)], seeds=(0, 0))


def test_arenas_that_cannot_be(toy, toy_shift):
    with pytest.raises(InputError, match="no backbone, task or seed"):
        BackboneArena([], [LinearProbe(toy_shift())])
    with pytest.raises(InputError, match="'pixels': reads images, but task 'toy' holds arrays"):
        BackboneArena(["pixels"], [LinearProbe(toy_shift())])


class Given(Task):
    group, setting, reads, identity = "given", "given", "array", "given"
    example = torch.zeros(2, 6)

    def __init__(self, *scores):
        self.scores = list(scores)

    def measure(self, candidate, budget, seed):
        return self.scores


def test_tasks_of_your_own_and_scores_that_are_refused(toy):
    frame = BackboneArena([toy("a")], [Given(Score("here", "accuracy", 0.5))], seeds=(0,)).run()
    assert frame.value.tolist() == [0.5] and frame.task.tolist() == ["given"]
    with pytest.raises(InputError, match="is nan for accuracy"):
        BackboneArena([toy("a")], [Given(Score("here", "accuracy", float("nan")))]).run()
    with pytest.raises(InputError, match="no declared direction"):
        BackboneArena([toy("a")], [Given(Score("here", "delight", 0.5))]).run()
    with pytest.raises(InputError, match="has a score twice"):
        BackboneArena([toy("a")], [Given(*[Score("here", "accuracy", 0.5)] * 2)]).run()


def test_a_run_is_stored_whole_or_not_at_all(tmp_path):
    with ScoreStore(tmp_path / "deep" / "scores.sqlite") as store:
        with pytest.raises(InputError, match="twice"):
            store.add("run", [Score("a", "accuracy", 0.1), Score("a", "accuracy", 0.2)])
        assert store.scores("run") is None
        store.add("run", [Score("b", "mAP", 0.1, "x"), Score("a", "mAP", 0.2)])
        assert store.scores("run") == [Score("b", "mAP", 0.1, "x"), Score("a", "mAP", 0.2)]
    assert sqlite3.connect(tmp_path / "deep" / "scores.sqlite").execute(
        "select count(*) from scores"
    ).fetchone() == (2,)


def test_a_file_that_is_no_store(tmp_path):
    (tmp_path / "scores.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match="cannot be used"):
        ScoreStore(tmp_path / "scores.sqlite")
