"""A study as one program against one cell after another: of a run its step, and of a cell everything.

Run `python benchmarks/batched.py [threads]`. CPU time of the process, because wall time on a shared machine
says little; with several threads, wall time. Both sides alternate, and the least of the rounds counts. The
whole cell is training, evaluation, five detectors' scores and storing.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unseen.shifts import Shift
from unseen.shifts.arrays import from_arrays
from unseen.studies.execution import execute
from unseen.studies.plan import Plan
from unseen.studies.store import Store
from unseen.training import Learner, train
from unseen.training.batched import Run, can_batch, train_many
from unseen.training.data import TrainingData

STEPS, CLASSES, DOMAINS, ROUNDS, TARGET = 300, 5, 4, 2, 20.0
LINEAR_LEARNERS = ("erm", "groupdro", "irm", "vrex", "iga", "fishr", "eqrm")


def study(
    inputs: int, network: str, rates: int, seeds: int, objective: str = "erm", steps: int = STEPS
) -> list[Run]:
    """Learning rates x held-out domains x seeds, on 1200 examples of 3 training domains, batch 3 x 32."""
    shift = _shift(inputs)
    data = [TrainingData(shift.split(name)) for name in shift.domains]
    learner = Learner(objective=objective, network=network, steps=steps)
    learners = [learner.replace(learning_rate=1e-3 * 1.5**index) for index in range(rates)]
    return [Run(one, held, seed) for one in learners for held in data for seed in range(seeds)]


def _shift(inputs: int) -> Shift:
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(1200) % CLASSES, torch.arange(1200) // CLASSES % DOMAINS
    centres = torch.randn(CLASSES, inputs, generator=generator) / inputs**0.5
    x = torch.randn(1200, inputs, generator=generator) + 2 * centres[labels]
    return from_arrays(x, labels, domain)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """One row a study: microseconds of a run's step together (`value`) and one by one (`reference`)."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    rows = []
    studies = (
        ("linear 64, 60 runs, 15 seeds", 64, "linear", 1, 15, "erm"),
        ("linear 64, 60 runs, 5 rates x 3 seeds", 64, "linear", 5, 3, "erm"),
        ("linear 64, 600 runs, 10 rates x 15 seeds", 64, "linear", 10, 15, "erm"),
        ("linear 64, 200 runs, 10 rates x 5 seeds, groupdro", 64, "linear", 10, 5, "groupdro"),
        ("linear 1280, 60 runs, 15 seeds", 1280, "linear", 1, 15, "erm"),
        ("linear 1280, 200 runs, 10 rates x 5 seeds", 1280, "linear", 10, 5, "erm"),
        ("mlp 64-64-64, 60 runs, 5 rates x 3 seeds", 64, "mlp(width=64)", 5, 3, "erm"),
    )
    steps, rounds = STEPS, ROUNDS
    if quick:
        studies, steps, rounds = (("linear 8, 8 runs, 2 seeds", 8, "linear", 1, 2, "erm"),), 5, 1
    for what, inputs, network, rates, seeds, objective in studies:
        runs = study(inputs, network, rates, seeds, objective, steps)
        assert can_batch(runs[0].learner, runs[0].data) is None
        together, alone = [], []
        for _ in range(rounds):
            began = clock()
            train_many(runs)
            middle = clock()
            for one in runs[:: len(runs) // 5]:
                train(one.learner, one.data, seed=one.seed)
            together.append((middle - began) / len(runs) / steps * 1e6)
            alone.append((clock() - middle) / len(runs[:: len(runs) // 5]) / steps * 1e6)
        value, reference = min(together), min(alone)
        rows.append(
            {
                "what": what,
                "value": round(value, 1),
                "unit": "us per run and step",
                "reference": round(reference, 1),
                "ratio": round(reference / value, 1),
                "target": TARGET,
            }
        )
    return [*rows, *_whole_studies(quick)]


def _whole_studies(quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of a cell: learners x 21 draws x 3 seeds x 4 held-out domains, and 11 draws for an MLP.

    Stacking saves Python's share and not arithmetic. That bounds the last two rows: RDM takes 36,864 exponentials
    a run and step, and the MLP's products with its hidden layers alone about 100 us of a core. Mixed inputs differ
    from run to run, so that runs with the same examples share no product.
    """
    studies = (
        ("linear 64, 1,764 cells of 7 learners", "linear", LINEAR_LEARNERS, 20),
        ("linear 64, 504 cells of mixup and rdm", "linear", ("mixup", "rdm"), 20),
        ("mlp 64-64-64, 132 cells of erm", "mlp(width=64)", ("erm",), 10),
    )
    if quick:
        studies = (("linear 64, 24 cells of 2 learners", "linear", LINEAR_LEARNERS[:2], 0),)
    rows = []
    for what, network, learners, search in studies:
        shift = _shift(64)
        plan = Plan.make(
            shift, [Learner(objective=name, network=network, steps=5 if quick else STEPS) for name in learners],
            seeds=3, search=search,
        )  # fmt: skip
        some = replace(plan, cells=plan.cells[:: max(1, len(plan.cells) // (2 if quick else 30))])
        seconds = {}
        for engine, part in (("batched", plan), ("serial", some)):
            with TemporaryDirectory() as folder, Store(f"{folder}/results.sqlite") as store:
                began = time.process_time()
                execute(part, store, engine=engine)  # type: ignore[arg-type]
                seconds[engine] = (time.process_time() - began) / len(part.cells)
        rows.append(
            {
                "what": what,
                "value": round(seconds["batched"] * 1e3, 2),
                "unit": "ms a whole cell",
                "reference": round(seconds["serial"] * 1e3, 1),
                "ratio": round(seconds["serial"] / seconds["batched"], 1),
                "target": TARGET,
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for row in run():
        print(row, flush=True)
