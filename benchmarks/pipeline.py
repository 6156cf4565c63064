"""What surrounds the training steps: assembly of batches, the first step of a run, evaluation's share of it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.timing import compare, quiet
from unseen.shifts import Shift
from unseen.shifts.arrays import from_arrays
from unseen.shifts.opening import open_shift
from unseen.studies.evaluate import evaluate
from unseen.studies.plan import DETECTORS
from unseen.training import Learner, train
from unseen.training.data import TrainingData
from unseen.training.system import build_system

DOMAINS, CLASSES, PER_DOMAIN = 3, 2, 64


def run(quick: bool = False) -> list[dict[str, Any]]:
    """CPU microseconds of assembling a batch beside a DataLoader's, seconds to the first step, per cent of a run."""
    examples = 600 if quick else 6000
    vectors, images = _shift(examples, 392), _shift(examples, 3, 28, 28)
    rows = [_assembly("vectors of 392", vectors, quick), _assembly("images, 3 x 28 x 28", images, quick)]
    with quiet():
        rows += [_first_step("MLP, vectors of 392", vectors), _first_step("CNN, images 3 x 28 x 28", images)]
        rows += _evaluation_share("MLP, vectors of 392", vectors, quick)
        rows += _evaluation_share("CNN, images 3 x 28 x 28", images, quick)
        rows += _evaluation_share(
            "CNN, digits without mnist", open_shift("digits"), quick, all_target="<= 20"
        )
    return rows


def _shift(examples: int, *shape: int) -> Shift:
    """Classes around two centres, in domains that differ in place."""
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(examples) % CLASSES, torch.arange(examples) // CLASSES % DOMAINS
    centres = 0.1 * torch.randn(CLASSES, *shape, generator=generator)
    places = 0.1 * torch.randn(DOMAINS, *shape, generator=generator)
    noise = torch.randn(examples, *shape, generator=generator)
    return from_arrays(noise + centres[labels] + places[domain], labels, domain)


def _assembly(what: str, shift: Shift, quick: bool) -> dict[str, Any]:
    """A step's batch of two domains: drawn and indexed, or from one DataLoader a domain, in this process."""
    data = TrainingData(shift.split(shift.domains[0]))
    sampler, steps = data.sampler(PER_DOMAIN, 0), iter(range(10**9))

    def indexed() -> None:
        step = next(steps)
        data.batch(sampler.rows(step), step)

    train = data.split.train
    loaders = [
        iter(
            DataLoader(
                tensors := TensorDataset(data.stored[rows], shift.labels[rows]),
                batch_size=PER_DOMAIN,
                sampler=RandomSampler(tensors, replacement=True, num_samples=10**9),
                num_workers=0,
            )
        )
        for rows in (train[data.domain[train] == index] for index in range(DOMAINS - 1))
    ]

    def loaded() -> None:
        parts = [next(loader) for loader in loaders]
        torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    seconds = compare({"indexed": indexed, "loaded": loaded}, rounds=2 if quick else 15, seconds=0.02)
    value, reference = seconds["indexed"] * 1e6, seconds["loaded"] * 1e6
    return {
        "what": f"batch of 2 x {PER_DOMAIN}, {what}, against DataLoader(num_workers=0)",
        "value": value,
        "unit": "us CPU",
        "reference": reference,
        "ratio": reference / value,
        "target": None,
    }


def _first_step(what: str, shift: Shift) -> dict[str, Any]:
    """Wall time from tensors in memory to one trained step: split, preprocessing, network, optimizer, step."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        data = TrainingData(shift.split(shift.domains[0]))
        done: list[float] = []
        train(
            Learner(steps=2, evaluations=1, batch_size=PER_DOMAIN),  # the first step is not evaluated
            data,
            progress=lambda *_, done=done: done.append(time.perf_counter()),
        )
        best = min(best, done[0] - began)
    what = f"from {len(shift):,} examples in memory to the first step done, {what}"
    return _alone(what, best, "s", "<= 1")


def _evaluation_share(
    what: str, shift: Shift, quick: bool, all_target: str | None = None
) -> list[dict[str, Any]]:
    """Per cent of a run at default settings (300 steps, 10 evaluations) that judging the network takes.

    The target is for what other libraries evaluate too (accuracy, by class and domain, and calibration); the
    second row adds the scores of all detectors. Of `unseen run digits` that, too, has a target, `all_target`; the
    other data have two domains to train on, hence smaller batches and cheaper steps, and more examples to judge.
    """
    learner = Learner(steps=10 if quick else 300, evaluations=2 if quick else 10)
    data = TrainingData(shift.split(shift.domains[0]))
    began = time.perf_counter()
    result = train(learner, data)
    trained = time.perf_counter() - began
    network = build_system(learner, data, 0).network
    network.load_state_dict(result.state)
    rows = []
    for detectors, name, target in (
        ((), "evaluation", "<= 20"),
        (DETECTORS, "evaluation and detectors", all_target),
    ):
        began = time.perf_counter()
        evaluate(network, data, detectors)
        judged = time.perf_counter() - began
        share = (result.facts["evaluation_seconds"] + judged) / (trained + judged) * 100
        rows.append(
            _alone(f"{name} in a run of {learner.steps} steps, {what}", share, "% of the run", target)
        )
    return rows


def _alone(what: str, value: float, unit: str, target: str | None) -> dict[str, Any]:
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": None,
        "ratio": None,
        "target": target,
    }
