"""From a recipe to one job a tensor of the result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import STRETCH, Method
from unseen.merging.checkpoints import (
    Checkpoint,
    TensorInfo,
    check_same_form,
    check_same_tensors,
    missing,
    open_checkpoint,
)
from unseen.merging.memory import (
    Inputs,
    Read,
    check_covers,
    check_fisher,
    in_type,
    is_merged,
    merge_tensor,
    warn_of_statistics,
    with_base,
)
from unseen.merging.recipe import Parameters, Recipe, Slice, Source, evaluate

FIRST = ("emb", "wte", "wpe", "cls_token")
"""Tensors outside the layers whose names hold one of these come from the first slice; others from the last."""


@dataclass(frozen=True)
class Part:
    """A tensor of a checkpoint."""

    checkpoint: Checkpoint
    name: str

    def reader(self, stretch: tuple[int, int] | None) -> Read:
        """Reads the tensor, or entries [first, last) of it, flat."""

        def read() -> tuple[Tensor, str]:
            if stretch is None:
                return self.checkpoint.read(self.name), self.checkpoint.label
            return self.checkpoint.read_range(self.name, *stretch), self.checkpoint.label

        return read


@dataclass(frozen=True)
class Job:
    """One tensor of the result. Without a method it is copied from its only part."""

    name: str
    info: TensorInfo
    parts: tuple[Part, ...]
    method: Method | None = None
    base: Part | None = None
    fisher: tuple[Part, ...] = ()

    def run(self, seed: int) -> Iterator[Tensor]:
        """The tensor, in stretches where the method allows it: these stay in the processor's cache."""
        if self.method is None or not self.method.streams:
            yield self._merge(None, seed)
            return
        ends = range(0, self.info.count, STRETCH)
        stretches = [(first, min(first + STRETCH, self.info.count)) for first in ends]
        seen = None if self.method.look is None else self.method.look(map(self._checked, stretches))
        for stretch in stretches:
            yield self._merge(stretch, seed, seen)

    def _checked(self, stretch: tuple[int, int]) -> tuple[Sequence[Tensor], Tensor]:
        """A stretch of the tensors and of the base. Raises `InputError` for NaN."""
        assert self.base is not None
        readers = [part.reader(stretch) for part in (self.base, *self.parts)]
        base, *others = Inputs(readers, self.name, check=True)
        return others, base

    def _merge(self, stretch: tuple[int, int] | None, seed: int, seen: Any = None) -> Tensor:
        if self.method is None:
            return self.parts[0].reader(stretch)()[0]
        merged = merge_tensor(
            self.method,
            self.name,
            [part.reader(stretch) for part in self.parts],
            base=None if self.base is None else self.base.reader(stretch),
            fisher=[part.reader(stretch) for part in self.fisher],
            seed=seed,
            seen=seen,
        )
        return in_type(merged, self.info.dtype, self.name)


@dataclass(frozen=True)
class Plan:
    """All jobs of a recipe; `leading` gives the configuration and what isn't averaged."""

    recipe: Recipe
    checkpoints: Mapping[str, Checkpoint]
    jobs: list[Job]
    leading: Checkpoint
    layers: int | None = field(default=None)
    """Number of layers of the result, when layers were chosen."""


def warn_of_batch_statistics(made: Plan) -> None:
    """Warn, once, when running means of batch normalisation are about to be averaged that differ."""
    for job in made.jobs:
        parts = [*job.parts, *([job.base] if job.base else [])]
        if warn_of_statistics(job.name, (part.reader(None)()[0] for part in parts)):
            return


def plan(recipe: Recipe) -> Plan:
    """Open every checkpoint and pair their tensors. Raises `InputError` before anything is computed."""
    opened = {name: open_checkpoint(name) for name in recipe.models}
    maker = _Maker(recipe, opened)
    if not recipe.stacked:
        for one in recipe.slices:
            check_same_tensors([opened[source.model] for source in one.sources] + maker.bases(one))
    jobs = [job for index in range(len(recipe.slices)) for job in maker.jobs(index)]
    leading = opened[recipe.base or recipe.slices[0].sources[0].model]
    layers = sum(_length(one) for one in recipe.slices) if recipe.stacked else None
    return Plan(recipe, opened, jobs, leading, layers)


class _Maker:
    def __init__(self, recipe: Recipe, opened: Mapping[str, Checkpoint]):
        self.recipe, self.opened = recipe, opened
        self.method = Method.of(recipe.method)
        self.diagonals: dict[str, Checkpoint] = {}
        self.tried: set[str] = set()

    def bases(self, one: Slice) -> list[Checkpoint]:
        name = one.base or self.recipe.base
        return [] if name is None else [self.opened[name]]

    def jobs(self, index: int) -> list[Job]:
        """Of the tensors in the slice's layers, and of those outside of layers that it gives."""
        one = self.recipe.slices[index]
        reference = self.opened[one.sources[0].model]
        layer = layer_pattern(reference.tensors)
        if self.recipe.stacked and layer is None:
            raise InputError(f"model {reference.label}", "has no numbered layers", "Give models, not slices.")
        first, last = one.sources[0].layers or (0, _layers(reference.tensors, layer))
        _check_range(reference, first, last, layer)
        start = sum(_length(earlier) for earlier in self.recipe.slices[:index])
        found = []
        for name in reference.tensors:
            match = layer.match(name) if layer else None
            if match is None:
                if self._gives(index, name):
                    found.append(self._job(one, name, [name] * len(one.sources), 0.0))
                continue
            offset = int(match[2]) - first
            if 0 <= offset < last - first:
                names = [_renumber(match, (s.layers or (first, last))[0] + offset) for s in one.sources]
                position = offset / (last - first - 1) if last - first > 1 else 1.0
                found.append(self._job(one, _renumber(match, start + offset), names, position))
        return found

    def _gives(self, index: int, name: str) -> bool:
        wanted = 0 if any(part in name for part in FIRST) else len(self.recipe.slices) - 1
        return index == wanted

    def _job(self, one: Slice, name: str, names: list[str], position: float) -> Job:
        models = [Part(self.opened[s.model], n) for s, n in zip(one.sources, names, strict=True)]
        sources = list(one.sources)
        root = one.base or self.recipe.base
        base = self._base(root, models, sources, names, name)
        lead = base or models[0]
        self._check(lead, [*models, *([base] if base else [])])
        info = lead.checkpoint.tensors[lead.name]
        if not is_merged(info):
            return Job(name, info, (lead,))
        dtype = self.recipe.dtype or info.dtype
        options, fisher = self._options(one, sources, models, name, position)
        method = Method.of(self.method.name, **options)
        check_fisher(method, len(models), len(fisher))
        self._try(method, len(models), base is not None)
        return Job(name, TensorInfo(info.shape, dtype), tuple(models), method, base, tuple(fisher))

    def _try(self, method: Method, count: int, base: bool) -> None:
        """Call the method on small tensors: bad options are told before the first hour, not after it."""
        key = f"{method.options} {count} {base}"
        if key not in self.tried:
            self.tried.add(key)

            def ones() -> tuple[Tensor, str]:
                return torch.ones(2, 2), "a trial"

            fisher = [ones] * count if method.weighs_by_fisher else []
            merge_tensor(method, "trial", [ones] * count, base=ones if base else None, fisher=fisher)

    def _base(
        self, root: str | None, models: list[Part], sources: list[Source], names: list[str], name: str
    ) -> Part | None:
        """The base's tensor; takes the base out of the models where the method has it apart."""
        named = [source.model for source in sources]
        if self.method.base == "unused":
            if root is not None and root not in named:
                with_base(self.method, [], self.opened[root])  # says that it has no use
            return None
        if root is None:
            if self.method.base == "optional":
                return None
            with_base(self.method, [part.checkpoint for part in models], None)  # says when there are not two
            root = named[0]
        if root in named:
            place = named.index(root)
            del sources[place]
            return models.pop(place)
        return Part(self.opened[root], names[0] if self.recipe.stacked else name)

    def _check(self, lead: Part, parts: list[Part]) -> None:
        for part in parts:
            if part.name not in part.checkpoint.tensors:
                raise missing(part.name, lead.checkpoint, part.checkpoint)
        info = lead.checkpoint.tensors[lead.name]
        for part in parts:
            check_same_form(
                part.name,
                info,
                part.checkpoint.tensors[part.name],
                lead.checkpoint.label,
                part.checkpoint.label,
            )

    def _options(
        self, one: Slice, sources: list[Source], models: list[Part], name: str, position: float
    ) -> tuple[dict[str, Any], list[Part]]:
        """Values of this tensor: the source's, else the slice's, else the recipe's."""

        def value(option: str, tensor: str, *levels: Parameters) -> Any:
            for level in levels:
                if option in level:
                    found = evaluate(level[option], tensor, position)
                    if found is not None:
                        return found
            return None

        defaults, options = self.method.entry.options(), {}
        for option in self.method.option_names():
            if self.method.is_per_model(option):
                column = [
                    value(option, part.name, source.parameters, one.parameters, self.recipe.parameters)
                    for source, part in zip(sources, models, strict=True)
                ]
                if any(each is not None for each in column):
                    default = defaults[option]
                    options[option] = [default if each is None else _number(option, each) for each in column]
            else:
                found = value(option, name, one.parameters, self.recipe.parameters)
                if found is not None:
                    options[option] = found
        fisher = [
            Part(self._diagonal(source.parameters["fisher"], part.checkpoint), part.name)
            for source, part in zip(sources, models, strict=True)
            if "fisher" in source.parameters
        ]
        return options, fisher

    def _diagonal(self, path: str, model: Checkpoint) -> Checkpoint:
        if path not in self.diagonals:
            self.diagonals[path] = open_checkpoint(path)
            check_covers(self.diagonals[path], model)
        return self.diagonals[path]


def layer_pattern(names: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Matches the tensors of numbered layers as (prefix)(number)(rest): the stack with the most layers.

    In model.layers.7.mlp.weight it is the first part of the name that is a number that counts.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        match = re.match(r"(.*?\.)?(\d+)(?=\.)", name)
        if match:
            numbers.setdefault(match[1] or "", set()).add(int(match[2]))
    if not numbers:
        return None
    prefix = max(numbers, key=lambda each: len(numbers[each]))
    return re.compile(f"({re.escape(prefix)})(\\d+)(\\..*)")


def _layers(names: Mapping[str, Any], layer: re.Pattern[str] | None) -> int:
    matches = [layer.match(name) for name in names] if layer else []
    return max((int(match[2]) + 1 for match in matches if match), default=0)


def _check_range(model: Checkpoint, first: int, last: int, layer: re.Pattern[str] | None) -> None:
    count = _layers(model.tensors, layer)
    if last > count:
        raise InputError(
            f"layer_range [{first}, {last}]", f"exceeds the {count} layers of {model.label}", "Shorten it."
        )


def _renumber(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{number}{match[3]}"


def _length(one: Slice) -> int:
    layers = one.sources[0].layers
    return layers[1] - layers[0] if layers else 0


def _number(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"option {option!r}", f"is {value!r}", "Give a number, or one a model.")
    return float(value)
