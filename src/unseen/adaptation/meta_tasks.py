"""Tasks for meta-learning: a support, queries and outliers that one transformation has shifted alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.task_streams import Labelled, Transform, support_rows


@dataclass(frozen=True)
class MetaTask:
    """What the inner steps learn from (`support`), and what the outer loss judges (`query` and `outliers`)."""

    support: Labelled
    query: Labelled
    outliers: Tensor


def pseudo_ood_classes(labels: Tensor, n_ood: int, *, seed: int | torch.Generator = 0) -> Tensor:
    """(N,) bool: the examples of `n_ood` classes drawn at random, which play the unfamiliar inputs of a task.

    Raises InputError unless at least one class plays them and two remain.
    """
    classes = labels.unique()
    if not 1 <= n_ood <= len(classes) - 2:
        raise InputError(
            "n_ood",
            f"is {n_ood} of {len(classes)} classes",
            "Give at least 1, and leave two classes to tell apart.",
        )
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return torch.isin(labels, classes[torch.randperm(len(classes), generator=generator)[:n_ood]])


def transform_tasks(
    x: Tensor,
    y: Tensor,
    transforms: Sequence[Transform],
    *,
    outliers: Tensor | None = None,
    n_ood: int = 1,
    shots: int = 5,
    queries: int = 64,
    seed: int = 0,
) -> Iterator[MetaTask]:
    """Tasks without end, each under one of the transformations, drawn at random.

    x, y        labelled inputs (N, ...) of the training distribution, classes counted from 0
    transforms  functions of inputs (B, ...) that keep the class
    outliers    inputs (M, ...) of none of the classes; None lets `n_ood` classes play them, others for every task
    shots       support examples a class; the queries are other examples
    queries     examples in the query, and as many outliers; all there are, where there are fewer
    """
    if not transforms:
        raise InputError("transforms", "are empty", "Give at least one function of inputs.")
    if outliers is not None and not len(outliers):
        raise InputError("outliers", "are empty", "Give inputs of none of the classes, or None.")
    if min(shots, queries) < 1:
        raise InputError("shots and queries", f"are {shots} and {queries}", "Give whole numbers from 1.")
    fewest = int(torch.bincount(y)[y.unique()].min())
    if fewest <= shots:
        raise InputError(
            "y", f"has a class of {fewest} examples", f"Give more than shots={shots} of every class."
        )
    return _tasks(x, y, transforms, outliers, n_ood, shots, queries, torch.Generator().manual_seed(seed))


def _tasks(
    x: Tensor,
    y: Tensor,
    transforms: Sequence[Transform],
    outliers: Tensor | None,
    n_ood: int,
    shots: int,
    queries: int,
    generator: torch.Generator,
) -> Iterator[MetaTask]:
    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:queries]]

    while True:
        transform = transforms[int(torch.randint(len(transforms), (), generator=generator))]
        if outliers is None:
            out = pseudo_ood_classes(y, n_ood, seed=generator)
            known, unfamiliar = (~out).nonzero().squeeze(1), x[some(out.nonzero().squeeze(1))]
        else:
            known, unfamiliar = torch.arange(len(y)), outliers[some(torch.arange(len(outliers)))]
        support = known[support_rows(y[known], shots, generator)]
        query = some(known[~torch.isin(known, support)])
        sizes = [len(support), len(query), len(unfamiliar)]
        moved = transform(torch.cat([x[support], x[query], unfamiliar])).split(sizes)
        yield MetaTask(Labelled(moved[0], y[support]), Labelled(moved[1], y[query]), moved[2])
