"""Which runs can be trained as one program, and how to cut a list of runs into programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from unseen.averaging import has_batch_statistics
from unseen.objectives import Objective
from unseen.registry import Spec, averaging, objectives
from unseen.training.data import TrainingData
from unseen.training.learner import Learner
from unseen.training.numbers import Number, numbers, settings
from unseen.training.stages import has_stages
from unseen.training.system import TrainingSystem

PROGRAM_BYTES, INPUT_BYTES = 2**27, 2**24
"""What one program may hold, and gather as inputs in one step: more falls out of the processor's caches, and
malloc asks the system for tensors above 32 MiB anew at every step (measured: 10 times slower)."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training: what `train(learner, data, seed=seed)` would do."""

    learner: Learner
    data: TrainingData
    seed: int = 0


def objection(system: TrainingSystem, run: Run) -> str | None:
    """Why a run cannot be stacked with others, as far as can be seen without trying; None if nothing is."""
    learner, data = run.learner, run.data
    if learner.layer_decay < 1:
        return "Its layers have learning rates of their own, and a stack has one for each run."
    if learner.averaging is not None and averaging.build(learner.averaging).chooses:
        return "Its averaging chooses by validation, which a run does by itself."
    if has_stages(system.objective):
        return "Its objective works before or after the training, which a run does by itself."
    tensors = data.stored.values() if isinstance(data.stored, dict) else [data.stored]
    if not all(isinstance(value, Tensor) for value in tensors):
        return "Its inputs are decoded batch by batch, which costs more than training."
    if has_batch_statistics(system.network):
        return "Its network has batch normalisation, whose running statistics belong to one run."
    if system.objective.needs_unlabelled:
        return "Its objective reads examples without labels, which are drawn for one run at a time."
    if system.objective.needs_outliers:
        return "Its objective reads outliers, which are drawn for one run at a time."
    for module in system.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return "Its network has dropout, whose random numbers would differ from those of a run alone."
        if isinstance(module, nn.modules.conv._ConvNd):
            return "Its network has convolutions, which are slower together than one by one."  # measured: 1 to 1.8x
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            return f"Its network has a {type(module).__name__}, which cannot be stacked."
    return None


def changes_batches(objective: type[Objective]) -> bool:
    """Whether batches differ among runs that see the same examples, because the objective changes them."""
    return objective.prepare is not Objective.prepare or objective.change is not Objective.change


@dataclass(frozen=True)
class _Form:
    """What an objective is made of, as far as runs that share a program must agree on it, or may differ in it.

    fixed     its type, settings that are no numbers, and the shapes of what it owns: a hashable key
    numbers   its settings that are numbers
    prepares  whether it changes batches
    """

    fixed: tuple[Any, ...]
    numbers: dict[str, Number]
    prepares: bool


def _form(run: Run) -> _Form:
    spec = run.learner.objective
    return _form_of(objectives[spec.name].target, spec)


@lru_cache(maxsize=4096)
def _form_of(target: Any, spec: Spec) -> _Form:
    objective = objectives.build(spec)
    found = numbers(objective)
    plain = {path: value for path, value in settings(objective).items() if path not in found}
    prepares = changes_batches(type(objective))
    with torch.random.fork_rng(devices=()):
        objective.setup(features=4, classes=3, domains=2)  # of any size: equal settings give equal shapes
    shapes = tuple((name, tuple(value.shape)) for name, value in objective.state_dict().items())
    fixed = type(objective), tuple(found), repr(sorted(plain.items())), shapes
    return _Form(fixed, found, prepares)


def structure(run: Run) -> tuple[Any, ...]:
    """What runs must have in common to share a program, but for numbers of the objective: a hashable key."""
    learner, split = run.learner, run.data.split
    return (
        _form(run).fixed,
        learner.network,
        learner.backbone is None,
        learner.update,
        learner.averaging,
        learner.optimizer,
        learner.layer_decay < 1,
        learner.layers,
        learner.steps,
        learner.batch_size,
        learner.evaluations,
        learner.clip,
        repr(run.data.preprocessing.shape),
        len(split.shift.classes),
        len(split.train_domains),
        split.shift.group is None,
        split.shift.weight is None,
    )


def stream(run: Run) -> tuple[Any, ...]:
    """Runs with an equal key see the same batches. Those of an objective that changes them share it, too."""
    return id(run.data), run.seed, run.learner.objective if _form(run).prepares else None


def pinned(run: Run, free: frozenset[str]) -> tuple[Any, ...]:
    """Numbers of the objective that all runs of a program share."""
    return tuple((path, value) for path, value in _form(run).numbers.items() if path not in free)


@dataclass(frozen=True)
class Size:
    """Bytes that a step moves, about: of a stream's inputs, and of a run's weights and activations."""

    inputs: int
    run: int

    @classmethod
    def of(cls, system: TrainingSystem, run: Run) -> Size:
        batch = run.learner.batch_size * len(run.data.split.train_domains)
        stored = run.data.stored
        tensors = stored.values() if isinstance(stored, dict) else [stored]
        coordinates = sum(tensor[:1].numel() for tensor in tensors)
        widths = sum(m.out_features for m in system.modules() if isinstance(m, nn.Linear))
        weights = sum(p.numel() for p in system.parameters())
        kept = 10  # weights, gradients, moments, scratch, the best and the averaged ones
        return cls(4 * batch * coordinates, 4 * (kept * weights + 4 * batch * widths))


def cut(runs: Sequence[Run], size: Size) -> list[list[int]]:
    """Positions of runs that share a structure, as programs: streams of equally many runs, not too large."""
    streams: dict[Any, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        streams[stream(run)].append(index)
    by_count: dict[int, list[list[int]]] = defaultdict(list)
    most = max(1, (PROGRAM_BYTES - size.inputs) // size.run)
    for members in streams.values():
        for start in range(0, len(members), most):
            piece = members[start : start + most]
            by_count[len(piece)].append(piece)
    programs = []
    for count, pieces in by_count.items():
        pieces.sort(key=lambda piece: id(runs[piece[0]].data))  # streams of one data set side by side
        several = max(1, min(INPUT_BYTES // size.inputs, PROGRAM_BYTES // (size.inputs + count * size.run)))
        for start in range(0, len(pieces), several):
            programs.append([index for piece in pieces[start : start + several] for index in piece])
    return programs
