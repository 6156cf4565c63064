"""Which runs can be trained as one program, and how to cut a list of runs into programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unseen.averaging import has_batch_statistics
from unseen.objectives import Objective
from unseen.registry import objectives
from unseen.shifts.batch import map_tensors
from unseen.training.data import TrainingData
from unseen.training.fit import TrainingSystem
from unseen.training.learner import Learner
from unseen.training.stacked import numbers, settings

PROGRAM_BYTES = 2**30
"""Memory that one program may take, about."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training: what `train(learner, data, seed=seed)` would do."""

    learner: Learner
    data: TrainingData
    seed: int = 0


def objection(system: TrainingSystem, data: TrainingData) -> str | None:
    """Why a network or its inputs cannot be stacked, as far as can be seen without trying; None if nothing is."""
    tensors = data.stored.values() if isinstance(data.stored, dict) else [data.stored]
    if not all(isinstance(value, Tensor) for value in tensors):
        return "Its inputs are decoded batch by batch, which costs more than training."
    if has_batch_statistics(system.network):
        return "Its network has batch normalisation, whose running statistics belong to one run."
    for module in system.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return "Its network has dropout, whose random numbers would differ from those of a run alone."
        if isinstance(module, nn.modules.conv._ConvNd):
            return "Its network has convolutions, which are no faster together than one by one."
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            return f"Its network has a {type(module).__name__}, which cannot be stacked."
    return None


def structure(run: Run) -> tuple[Any, ...]:
    """What runs must have in common to share a program, but for numbers of the objective: a hashable key."""
    learner, split = run.learner, run.data.split
    objective = objectives.build(learner.objective)
    plain = {path: value for path, value in settings(objective).items() if path not in numbers(objective)}
    return (
        type(objective),
        tuple(numbers(objective)),
        repr(sorted(plain.items())),
        learner.network,
        learner.backbone is None,
        learner.update,
        learner.averaging,
        learner.optimizer,
        learner.steps,
        learner.batch_size,
        learner.evaluations,
        learner.clip,
        repr(run.data.preprocessing.shape),
        len(split.shift.classes),
        len(split.train_domains),
        split.shift.group is None,
    )


def stream(run: Run) -> tuple[Any, ...]:
    """Runs with an equal key see the same batches. Those of an objective that changes them share it, too."""
    objective = objectives.build(run.learner.objective)
    same = type(objective).prepare is Objective.prepare
    return id(run.data), run.seed, None if same else run.learner.objective


def pinned(run: Run, free: frozenset[str]) -> tuple[Any, ...]:
    """Numbers of the objective that all runs of a program share, and the updates before which it resets."""
    objective = objectives.build(run.learner.objective)
    fixed = tuple((path, value) for path, value in numbers(objective).items() if path not in free)
    if type(objective).resets_optimizer_at is Objective.resets_optimizer_at:
        return fixed, ()
    return fixed, tuple(s for s in range(run.learner.steps) if objective.resets_optimizer_at(s))


def cut(runs: Sequence[Run], run_bytes: int) -> list[list[int]]:
    """Positions of runs that share a structure, as programs of equally many runs a stream that fit in memory."""
    streams: dict[Any, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        streams[stream(run)].append(index)
    by_size: dict[int, list[list[int]]] = defaultdict(list)
    for members in streams.values():
        by_size[len(members)].append(members)
    programs = []
    for size, found in by_size.items():
        found.sort(key=lambda members: id(runs[members[0]].data))  # rows of one data set side by side
        several = max(1, PROGRAM_BYTES // (size * run_bytes))
        for start in range(0, len(found), several):
            programs.append([index for members in found[start : start + several] for index in members])
    return programs


def run_bytes(system: TrainingSystem, run: Run) -> int:
    """Memory of a run in a program, about: weights, gradients, moments, averages, activations and inputs."""
    weights = sum(p.numel() for p in system.parameters())
    batch = run.learner.batch_size * len(run.data.split.train_domains)
    width = sum(m.out_features for m in system.modules() if isinstance(m, nn.Linear))
    sizes: list[int] = []
    map_tensors(lambda tensor: sizes.append(tensor[:1].numel()), run.data.stored)
    return 4 * (10 * weights + batch * (4 * width + sum(sizes)))
