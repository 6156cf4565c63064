import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image
from torch import nn

from unseen.errors import InputError
from unseen.objectives import Loss, Objective
from unseen.registry import objectives
from unseen.shifts import open_shift
from unseen.studies import Plan, Results, Store, Study, execute
from unseen.studies.execution import estimate_seconds

SMALL = {
    "steps": 30,
    "batch_size": 16,
    "network": "linear",
    "learning_rate": 0.02,
    "detectors": ("msp", "knn"),
}


def final(folder) -> dict:
    with Store(folder / "results.sqlite") as store:
        rows = store.metrics().merge(store.cells()[["cell", "method", "unseen", "seed"]], on="cell")
    rows = rows[rows.step == -1]
    keys = rows[["method", "unseen", "seed", "role", "domain", "category", "metric"]].itertuples(index=False)
    return dict(zip(map(tuple, keys), rows.value, strict=True))


@pytest.fixture(scope="module")
def one_by_one(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    Study(toy, ["erm", "groupdro"], seeds=2, **SMALL).run(folder, engine="serial")
    return folder


@pytest.mark.parametrize("engine", ["batched", "local", "auto"])
def test_every_engine_gives_the_same_numbers(toy, one_by_one, tmp_path, engine):
    study = Study(toy, ["erm", "groupdro"], seeds=2, **SMALL)
    study.run(tmp_path, engine=engine, workers=2)
    expected, found = final(one_by_one), final(tmp_path)
    assert found.keys() == expected.keys()
    values = np.array([(expected[key], found[key]) for key in expected])
    assert np.abs(values[:, 0] - values[:, 1]).max() < (1e-9 if engine == "local" else 0.02)


def test_folders_of_images_reach_worker_processes(tmp_path):
    for domain in "ab":
        for label in "xy":
            for index in range(6):
                path = tmp_path / "photos" / domain / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                level = 200 * (label == "y") + 10 * index
                Image.new("RGB", (12, 12), (level, level, 30 * (domain == "b"))).save(path)
    study = Study(
        open_shift(tmp_path / "photos"), ["erm"], seeds=1, steps=5, batch_size=4, detectors=("msp",)
    )
    results = study.run(tmp_path / "run", engine="local", workers=2)
    assert results.failed.empty and set(results.unseen_domains) == {"a", "b"}


def test_ray_gives_the_same_numbers(toy, one_by_one, tmp_path):
    pytest.importorskip("ray", reason="the extra `scale` is not installed")
    study = Study(toy, ["erm", "groupdro"], seeds=2, **SMALL)
    study.run(tmp_path, engine="ray", workers=2)
    assert final(tmp_path) == pytest.approx(final(one_by_one), abs=1e-9)


def test_a_finished_cell_is_not_run_again(toy, one_by_one, tmp_path, monkeypatch):
    import unseen.studies.execution as module

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.sqlite").write_bytes((one_by_one / "results.sqlite").read_bytes())
    ran = []
    original = module.run_cell
    monkeypatch.setattr(module, "run_cell", lambda cell, *rest: ran.append(cell) or original(cell, *rest))
    Study(toy, ["erm", "groupdro"], seeds=3, **SMALL).run(folder, engine="serial")
    assert {cell.seed for cell in ran} == {2} and len(ran) == 8


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from conftest import *
    from unseen.studies import Study
    shift = toy.__wrapped__() if hasattr(toy, "__wrapped__") else toy()
    study = Study(shift, ["erm", "groupdro"], seeds=3, **{small!r})
    study.run({folder!r}, engine="serial", progress=lambda done, total: print(done, flush=True))
"""


def test_a_killed_study_goes_on_and_repeats_nothing(toy, tmp_path):
    """kill -9 in the middle; then the same study again: whole results, no cell trained twice."""
    settings = {**SMALL, "steps": 400}
    folder = tmp_path / "run"
    script = textwrap.dedent(SCRIPT).format(
        tests=os.path.dirname(__file__), small=settings, folder=str(folder)
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 3:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.1)
    plan = Plan.make(toy, ["erm", "groupdro"], seeds=3, **settings)
    with Store(folder / "results.sqlite") as store:
        kept = store.finished()
        assert 3 <= len(kept) < len(plan.cells)
        before = store.cells().set_index("cell").seconds
        execute(plan, store, engine="serial")
        after = store.cells().set_index("cell").seconds
        assert len(after) == len(plan.cells) and after[list(kept)].equals(before[list(kept)])
        assert store.metrics().duplicated(["cell", "step", "role", "domain", "category", "metric"]).sum() == 0


class _Fragile(Objective):
    """Not a number from step 10 on."""

    def forward(self, model, batch):
        loss = nn.functional.cross_entropy(model(batch.x), batch.y)
        return Loss(loss * (float("nan") if batch.step >= 10 else 1.0))


def test_a_learner_that_diverges_does_not_stop_the_others(toy, tmp_path):
    objectives.register("fragile", summary="test")(_Fragile)
    try:
        results = Study(toy, ["erm", "fragile"], seeds=1, unseen="a", **SMALL).run(tmp_path, engine="serial")
        assert results.methods == ["erm"] and results.choice.method == "erm"
        assert "became nan at step 11 of 30" in results.failed.iloc[0].error
        assert any("failed" in note for note in results.pitfalls())
    finally:
        objectives._entries.pop("fragile")


def test_a_folder_of_other_data_is_refused(toy, one_by_one):
    import torch

    other = toy.subset(torch.arange(400))
    with pytest.raises(InputError, match="holds a study of other data"):
        Study(other, ["erm"], **SMALL).run(one_by_one)


def test_a_read_only_folder_is_named(toy, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(InputError, match="cannot be written \\(Read-only file system\\)"):
        Study(toy, ["erm"], **SMALL).run(tmp_path / "x")


def test_the_time_is_estimated_before_a_study_starts(toy, tmp_path):
    study = Study(toy, ["erm", "dann"], seeds=2, **{**SMALL, "network": "mlp"})
    with study.open_store(tmp_path) as store:
        seconds = estimate_seconds(study.plan, store)
    assert 0 < seconds < 60


def test_unknown_engines_are_refused(toy, tmp_path):
    with pytest.raises(InputError, match="engine 'slurm'"):
        Study(toy, ["erm"], **SMALL).run(tmp_path, engine="slurm")


def test_results_need_a_study(tmp_path):
    with pytest.raises(InputError, match="holds no results.sqlite"):
        Results(tmp_path)
