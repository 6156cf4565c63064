"""Many runs as one program: every step moves all of them, so that Python's share of a run vanishes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unseen.errors import TrainingDiverged, UnseenError
from unseen.registry import objectives
from unseen.training.data import TrainingData
from unseen.training.fit import Progress, train
from unseen.training.grouping import Run, Size, cut, objection, pinned, structure
from unseen.training.hardware import Hardware
from unseen.training.learner import Learner
from unseen.training.numbers import numbers
from unseen.training.program import Outcome, train_program
from unseen.training.stacked import StackedBatch, StackedSystem
from unseen.training.system import build_system

__all__ = ["Outcome", "Run", "can_batch", "group_runs", "train_many"]


def can_batch(learner: Learner, data: TrainingData) -> str | None:
    """None when runs of the learner can be trained as one program, else a sentence why not.

    Beyond what can be seen, two short runs are trained both ways and compared: methods of users, too, either
    give the same results in a program or are not put into one. The answer is remembered. What the trial cannot
    see is an update rule that changes its ways after the second step.
    """
    return _judgement(Run(learner, data)).objection


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Cut runs into programs: each can be trained as one and fits in memory. The others are alone."""
    return [[runs[index] for index in program] for program in _programs(runs)]


def train_many(
    runs: Sequence[Run], *, hardware: Hardware = Hardware(), progress: Progress | None = None
) -> list[Outcome]:
    """What `train` gives for each run, up to rounding; a run that diverged has the error as its result.

    Runs of one network architecture, batch size and number of steps, training domains and kind of method are
    trained together; what cannot be (see `can_batch`), or should be on several devices or in low precision,
    is trained one by one.

    progress  called as progress(runs done, runs)
    """
    outcomes: dict[int, Outcome] = {}
    together = hardware.devices == 1 and hardware.precision == "32-true"
    programs = _programs(runs) if together else [[index] for index in range(len(runs))]
    for program in programs:
        members = [runs[index] for index in program]
        alone = len(members) == 1
        found = [_train_alone(members[0], hardware)] if alone else train_program(members, _device(hardware))
        outcomes |= zip(program, found, strict=True)
        if progress is not None:
            progress(len(outcomes), len(runs))
    return [outcomes[index] for index in range(len(runs))]


def _train_alone(run: Run, hardware: Hardware) -> Outcome:
    try:
        return train(run.learner, run.data, seed=run.seed, hardware=hardware)
    except TrainingDiverged as error:
        return error


def _device(hardware: Hardware) -> torch.device:
    from lightning_fabric import Fabric

    return Fabric(accelerator=hardware.accelerator, devices=1).device


# Which runs go together ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judgement:
    """Whether runs of a structure can be stacked, and which numbers of the objective may differ among them."""

    objection: str | None
    free: frozenset[str] = frozenset()
    size: Size = Size(0, 1)


_judgements: dict[tuple[Any, ...], _Judgement] = {}


def _programs(runs: Sequence[Run]) -> list[list[int]]:
    alone: list[list[int]] = []
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        judgement = _judgement(run)
        if judgement.objection is not None:
            alone.append([index])
        else:
            alike[structure(run), pinned(run, judgement.free)].append(index)
    programs = []
    for members in alike.values():
        size = _judgement(runs[members[0]]).size
        programs += [[members[i] for i in program] for program in cut([runs[m] for m in members], size)]
    return programs + alone


def _judgement(run: Run) -> _Judgement:
    key = structure(run)
    if key not in _judgements:
        _judgements[key] = _judge(run)
    return _judgements[key]


def _judge(run: Run) -> _Judgement:
    short = run.learner.replace(steps=2, evaluations=1, patience=None, keep="last", schedule="constant")
    trial = [Run(short, run.data, seed) for seed in (0, 1)]
    try:
        system = build_system(run.learner, run.data, run.seed)
        problem = objection(system, run)
        if problem is not None:
            return _Judgement(problem)
        together = train_program(trial, torch.device("cpu"))
        _stacked_losses(run, [])
    except UnseenError as error:  # the run will say so itself
        return _Judgement(str(error))
    except Exception as error:  # whatever a method does that vmap cannot follow
        return _Judgement(f"It cannot be vectorised over runs ({str(error).splitlines()[0]}).")
    alone = [_train_alone(one, Hardware(accelerator="cpu")) for one in trial]
    if not all(_same(a, b) for a, b in zip(together, alone, strict=True)):
        return _Judgement("Stacked runs of it give other results than a run alone.")
    return _Judgement(None, _free_numbers(run), Size.of(system, run))


def _same(a: Outcome, b: Outcome) -> bool:
    """Whether two short trainings agree, but for a few weights: Adam turns a gradient of rounding into a step."""
    if isinstance(a, TrainingDiverged) or isinstance(b, TrainingDiverged):
        return type(a) is type(b)
    close = [torch.isclose(a.state[k], b.state[k], rtol=1e-3, atol=1e-5).flatten() for k in b.state]
    return torch.cat(close).float().mean().item() > 0.95


def _free_numbers(run: Run) -> frozenset[str]:
    """Numbers of the objective that can be tensors, one value a run: nothing of Python branches on them."""

    def works(paths: list[str]) -> bool:
        try:
            _stacked_losses(run, paths)
        except Exception:
            return False
        return True

    paths = list(numbers(objectives.build(run.learner.objective)))
    return frozenset(paths if works(paths) else [path for path in paths if works([path])])


def _stacked_losses(run: Run, paths: list[str]) -> None:
    """Try the loss of two stacked runs in the first and in the last step, with some numbers as tensors."""
    system = build_system(run.learner, run.data, run.seed)
    rows = run.data.sampler(run.learner.batch_size, run.seed).rows(0)
    found = numbers(system.objective)
    stack = StackedSystem([system, system], 1, {path: [found[path]] * 2 for path in paths})
    for step in (0, run.learner.steps - 1):
        batch = system.objective.prepare(run.data.batch(rows, step), torch.Generator().manual_seed(0))
        stack(StackedBatch.of([batch]))
