"""Proposers that need no language model: a list by hand, a grid of parameters, and draws at random (a control)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch

from unseen.errors import InputError
from unseen.extrapolation.proposals import DomainSpec


class ListProposer:
    """Domains written by hand; the first n of them.

    domains   `DomainSpec`s, or names, for which `template` makes the prompts
    template  prompt with places for {cls} and {domain}: "a photo of a {cls} in {domain}"; "{cls}" is the
              control of bare class names
    """

    def __init__(self, domains: Sequence[DomainSpec | str], template: str = ""):
        self.domains, self.template = list(domains), template

    @property
    def facts(self) -> dict[str, Any]:
        return {"proposer": "list", "template": self.template}

    def propose(self, task: str, classes: Sequence[str], n: int) -> list[DomainSpec]:
        if len(self.domains) < n:
            raise InputError("list of domains", f"has {len(self.domains)}, but {n} are wanted", "Write more.")
        return [
            domain
            if isinstance(domain, DomainSpec)
            else DomainSpec(domain, domain, prompts_from(self.template, classes, domain, {}))
            for domain in self.domains[:n]
        ]


class GridProposer:
    """Every combination of parameter values; n of them, evenly spread over the grid.

    grid      parameter name -> its values
    template  as of `ListProposer`, with places for the parameters too: "a {medium} of a {cls}"
    """

    def __init__(self, grid: Mapping[str, Sequence[Any]], template: str = ""):
        if not grid or not all(len(values) for values in grid.values()):
            raise InputError("grid", "has a parameter without values", "Give {name: [value, ...], ...}.")
        self.grid, self.template = {key: list(values) for key, values in grid.items()}, template

    @property
    def facts(self) -> dict[str, Any]:
        return {"proposer": "grid", "grid": self.grid, "template": self.template}

    def propose(self, task: str, classes: Sequence[str], n: int) -> list[DomainSpec]:
        cells = list(product(*self.grid.values()))
        if len(cells) < n:
            raise InputError(
                "grid", f"has {len(cells)} combinations, but {n} domains are wanted", "Widen it."
            )
        chosen = [cells[(2 * i + 1) * len(cells) // (2 * n)] for i in range(n)]
        return [
            _of_parameters(dict(zip(self.grid, cell, strict=True)), classes, self.template) for cell in chosen
        ]


class RandomProposer:
    """Parameters drawn independently: what diversity without knowledge gives.

    ranges    parameter name -> (low, high), drawn evenly, whole numbers when both are; or a list of choices
    template  as of `GridProposer`
    seed      of the draws: the first n domains are the same whatever n is
    """

    def __init__(
        self, ranges: Mapping[str, tuple[float, float] | Sequence[Any]], template: str = "", seed: int = 0
    ):
        for name, values in ranges.items():
            pair = isinstance(values, tuple)
            if not values or (pair and (len(values) != 2 or not values[0] <= values[1])):
                raise InputError(
                    f"range of {name!r}", f"is {values!r}", "Give (low, high), or a list of choices."
                )
        if not ranges:
            raise InputError("ranges", "are empty", "Give {parameter: (low, high), ...}.")
        self.ranges, self.template, self.seed = dict(ranges), template, seed

    @property
    def facts(self) -> dict[str, Any]:
        ranges = {key: list(values) for key, values in self.ranges.items()}
        return {"proposer": "random", "ranges": ranges, "template": self.template, "seed": self.seed}

    def propose(self, task: str, classes: Sequence[str], n: int) -> list[DomainSpec]:
        generator = torch.Generator().manual_seed(self.seed)
        specs: dict[str, DomainSpec] = {}
        for _ in range(100 * n):  # choices may repeat: a domain counts once
            if len(specs) == n:
                break
            draws = torch.rand(len(self.ranges), generator=generator).tolist()
            drawn = {k: _drawn(values, u) for (k, values), u in zip(self.ranges.items(), draws, strict=True)}
            spec = _of_parameters(drawn, classes, self.template)
            specs.setdefault(spec.name, spec)
        if len(specs) < n:
            raise InputError("ranges", f"give only {len(specs)} different domains of {n}", "Widen them.")
        return list(specs.values())


def prompts_from(
    template: str, classes: Sequence[str], domain: str, parameters: Mapping[str, Any]
) -> dict[str, list[str]]:
    """The prompt of every class that a template gives; no prompts for an empty template.

    A template without {cls} would give every class the same examples: `InputError`.
    """
    if not template:
        return {}
    if "{cls}" not in template:
        raise InputError(f"template {template!r}", "has no place for the class", "Write {cls} there.")
    try:
        return {cls: [template.format(**{**parameters, "domain": domain, "cls": cls})] for cls in classes}
    except (KeyError, IndexError, ValueError) as error:
        places = ", ".join(["cls", "domain", *parameters])
        raise InputError(
            f"template {template!r}", f"cannot be filled ({error})", f"Its places may be {places}."
        ) from None


def _of_parameters(parameters: Mapping[str, Any], classes: Sequence[str], template: str) -> DomainSpec:
    name = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in parameters.items())
    return DomainSpec(name, name, prompts_from(template, classes, name, parameters), parameters)


def _drawn(values: tuple[float, float] | Sequence[Any], u: float) -> Any:
    if not isinstance(values, tuple):
        return values[int(u * len(values))]
    low, high = values
    if isinstance(low, int) and isinstance(high, int):
        return low + math.floor(u * (high - low + 1))
    return round(low + u * (high - low), 4)
