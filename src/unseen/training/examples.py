"""The batches of many runs, drawn ahead and gathered together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unseen.objectives import Objective
from unseen.shifts.batch import map_tensors
from unseen.shifts.sampling import DomainSampler, derive_seed
from unseen.training.data import TrainingData
from unseen.training.numbers import numbers
from unseen.training.stacked import StackedBatch

STEPS_AHEAD = 50
"""Steps whose rows are drawn together."""


class StackedExamples:
    """The batches of U streams, as each of them alone would draw them, from data sets kept side by side.

    data        the streams' data sets; equal ones next to each other
    seeds       the streams' seeds
    objectives  the streams' objectives, whose `prepare` may change a batch
    """

    def __init__(
        self,
        data: Sequence[TrainingData],
        seeds: Sequence[int],
        objectives: Sequence[Objective],
        per_domain: int,
        device: torch.device | str = "cpu",
    ):
        self.device, self.seeds, self.objectives = device, seeds, objectives
        distinct = list({id(one): one for one in data}.values())
        self._x = _joined([one.preprocessing.finish(_to(one.stored, device)) for one in distinct])
        shifts = [one.split.shift for one in distinct]
        self._y = torch.cat([shift.labels for shift in shifts]).to(device)
        groups = [shift.group for shift in shifts if shift.group is not None]
        self._group = torch.cat(groups).to(device) if groups else None
        weights = [shift.weight for shift in shifts if shift.weight is not None]
        self._weight = torch.cat(weights).to(device) if weights else None
        first_rows = dict(zip(map(id, distinct), _starts([len(shift) for shift in shifts]), strict=True))
        self._offset = torch.tensor([first_rows[id(one)] for one in data])
        self._first_row = first_rows
        pairs = [(id(one), seed) for one, seed in zip(data, seeds, strict=True)]
        first_with, self._sampler = _grouped(pairs)
        self._samplers = [data[i].sampler(per_domain, derive_seed(seeds[i], 0)) for i in first_with]
        self.domains = len(data[0].split.train_domains)
        self._domain = torch.arange(self.domains, device=device).repeat_interleave(per_domain)
        self._change = self._change_of(type(objectives[0]))
        settings = [tuple(numbers(objective).items()) for objective in objectives]
        self._drawers, self._drawer = _grouped(list(zip(seeds, settings, strict=True)))

    def batches(self, steps: int) -> Iterator[StackedBatch]:
        for first in range(0, steps, STEPS_AHEAD):
            ahead = min(STEPS_AHEAD, steps - first)
            drawn = [rows_ahead(sampler, first, ahead) for sampler in self._samplers]
            ids = torch.stack(drawn, 1)[:, self._sampler]
            rows = (ids + self._offset.view(1, -1, 1)).to(self.device)
            labels = self._y[rows]
            groups = None if self._group is None else self._group[rows]
            weights = None if self._weight is None else self._weight[rows]
            ids = ids.to(self.device)
            for index in range(ahead):
                batch = StackedBatch(
                    x=self.inputs(rows[index]),
                    y=labels[index],
                    domain=self._domain,
                    domains=self.domains,
                    ids=ids[index],
                    group=None if groups is None else groups[index],
                    weight=None if weights is None else weights[index],
                    step=first + index,
                )
                yield batch if self._change is None else self._change(batch)

    def _change_of(self, objective: type[Objective]) -> Callable[[StackedBatch], StackedBatch] | None:
        if objective.prepare is not Objective.prepare:
            return self._changed_one_by_one
        return None if objective.change is Objective.change else self._changed_together

    def _changed_one_by_one(self, batch: StackedBatch) -> StackedBatch:
        changed = [
            objective.prepare(batch.of_stream(index), self._generator(index, batch.step))
            for index, objective in enumerate(self.objectives)
        ]
        return replace(StackedBatch.of(changed), domain=batch.domain)

    def _changed_together(self, batch: StackedBatch) -> StackedBatch:
        drawn = [
            self.objectives[index].draw(len(batch), self._generator(index, batch.step))
            for index in self._drawers
        ]
        stacked = {name: torch.stack([own[name] for own in drawn])[self._drawer] for name in drawn[0]}
        stacked = {name: value.to(self.device) for name, value in stacked.items()}
        return batch.changed(self.objectives[0].change, stacked)

    def _generator(self, index: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seeds[index], 0, step))

    def inputs(self, rows: Tensor) -> Any:
        """Finished inputs of rows of the data sets side by side, in the shape of `rows`."""
        flat = rows.flatten()  # index_select copies whole rows: indexing is up to 30 times slower here
        return map_tensors(lambda tensor: tensor.index_select(0, flat).unflatten(0, rows.shape), self._x)

    def rows_of(self, data: TrainingData, rows: Tensor) -> Tensor:
        """Where rows of one data set are among those of all."""
        return (rows + self._first_row[id(data)]).to(self.device)


def rows_ahead(sampler: DomainSampler, first: int, steps: int) -> Tensor:
    """(steps, D * per_domain): `sampler.rows(step)` of consecutive steps, without a loop over them."""
    start, stop = first * sampler.per_domain, (first + steps) * sampler.per_domain
    domains = []
    for index, pool in enumerate(sampler.pools):
        epochs = range(start // len(pool), (stop - 1) // len(pool) + 1)
        order = torch.cat([sampler.epoch(index, epoch) for epoch in epochs])
        skipped = start - epochs[0] * len(pool)
        domains.append(order[skipped : skipped + stop - start].view(steps, sampler.per_domain))
    return torch.cat(domains, 1)


def _grouped(keys: list[Any]) -> tuple[list[int], list[int]]:
    """Streams with an equal key draw the same: the first stream of each group, and each stream's group."""
    number: dict[Any, int] = {}
    group = [number.setdefault(key, len(number)) for key in keys]
    return [group.index(index) for index in range(len(number))], group


def _to(stored: Any, device: torch.device | str) -> Any:
    return map_tensors(lambda tensor: tensor.to(device), stored)


def _joined(inputs: list[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _joined([one[name] for one in inputs]) for name in inputs[0]}
    return torch.cat(inputs) if len(inputs) > 1 else inputs[0]


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]
