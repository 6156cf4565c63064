"""Banks of a study on disk: the same results, nothing left behind, and only where they are large."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from unseen.networks import Bank
from unseen.registry import detectors
from unseen.shifts import Shift
from unseen.studies import Study, banks
from unseen.studies.deploy import train_for_deployment
from unseen.studies.evaluate import evaluate
from unseen.training import Learner, kept_outputs
from unseen.training.data import TrainingData
from unseen.training.system import build_system

NAMES = ("msp", "knn", "mahalanobis", "gram", "odin", "relation")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "banks"


@pytest.fixture(scope="module")
def large() -> Shift:
    """Enough rows for several blocks of 512."""
    generator = torch.Generator().manual_seed(0)
    y, domain = torch.arange(3000) % 3, torch.arange(3000) % 4
    x = torch.randn(3000, 6, generator=generator) + 2 * torch.nn.functional.one_hot(y, 6)
    return Shift("large", "array", x, y, domain, "xyz", "abcd")


def opened(monkeypatch) -> list[Bank]:
    """Every bank that is opened from now on."""
    found, original = [], Bank.open
    monkeypatch.setattr(Bank, "open", lambda *args, **kw: found.append(original(*args, **kw)) or found[-1])
    return found


def test_a_cell_is_judged_the_same_from_disk(large, cache, monkeypatch):
    learner, plan = Learner(network="mlp(width=32)"), Study(large, ["erm"], unseen="d", far=["noise"]).plan
    data = TrainingData(large.split("d"))
    network = build_system(learner, data, 0).network
    records, arrays, _ = evaluate(network, data, NAMES, plan.unfamiliar)
    monkeypatch.setattr(banks, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(kept_outputs, "BLOCK", 512)
    seen = opened(monkeypatch)
    again, same, _ = evaluate(network, data, NAMES, plan.unfamiliar)
    assert len(seen) == 4 and sum(map(len, seen)) == 3000 + 1000
    assert records == again and arrays.keys() == same.keys()
    for name, values in arrays.items():
        assert np.array_equal(values, same[name]), name
    assert list(cache.iterdir()) == []


def test_the_limit_counts_what_detectors_keep(large, cache, monkeypatch):
    data = TrainingData(large.split("d"))
    network = build_system(Learner(network="mlp(width=32)"), data, 0).network
    row = 4 * (32 + 3)
    monkeypatch.setattr(banks, "MOST_IN_MEMORY", 100 * row)
    gram = [detectors.build("gram")]
    for examples, observers, on_disk in ((100, [], False), (101, [], True), (100, gram, True)):
        with banks.banks_of(network, data, examples, observers) as make:
            assert (make.folder is not None) == on_disk
    assert list(cache.iterdir()) == []


def test_the_deployed_model_is_the_same_from_disk(toy, tmp_path, cache, monkeypatch):
    small = {"seeds": 1, "steps": 5, "batch_size": 8, "network": "mlp(width=32)", "evaluations": 1}
    results = Study(toy, ["erm"], unseen="a", **small).run(tmp_path / "run", engine="serial")
    in_memory = train_for_deployment(results, toy)
    monkeypatch.setattr(banks, "MOST_IN_MEMORY", 0)
    on_disk = train_for_deployment(results, toy)
    assert in_memory.familiarity.threshold == on_disk.familiarity.threshold
    assert torch.equal(in_memory.reference.scores, on_disk.reference.scores)
    assert on_disk.predict(toy.inputs[:5]).equals(in_memory.predict(toy.inputs[:5]))


def _killed() -> None:
    with banks._temporary_folder() as folder:
        (folder / "features.npy").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_deleted_and_what_another_uses_is_not(cache):
    process = multiprocessing.get_context("fork").Process(target=_killed)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    (left,) = [path for path in cache.iterdir() if path.is_dir()]
    with banks._temporary_folder() as mine:
        assert not left.exists()
        with banks._temporary_folder() as other:
            assert mine.exists() and other.exists() and mine != other
        assert mine.exists() and not other.exists()
    assert list(cache.iterdir()) == []
    with pytest.raises(ZeroDivisionError), banks._temporary_folder() as mine:
        _ = 1 / 0
    assert list(cache.iterdir()) == []
