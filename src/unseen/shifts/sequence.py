"""Domains in sequence: cut by time, put in order, or joined from data sets that came one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.errors import InputError, nearest
from unseen.shifts.shift import Shift


def by_time(shift: Shift, bins: int = 8) -> Shift:
    """The same examples in `bins` domains of consecutive times and about equal size, earliest first.

    Examples of one time stay together, so fewer domains may result. Raises InputError for a shift without time,
    or with fewer than two different times.
    """
    if shift.time is None:
        raise InputError(f"shift {shift.name!r}", "has no time", "Name a time column, or use in_order.")
    if bins < 2:
        raise InputError("bins", f"are {bins}", "Give two or more.")
    times, place = np.unique(np.asarray(shift.time), return_inverse=True)
    # the share of examples before each time, plus half of its own, says to which bin all of its examples go
    counts = np.bincount(place)
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    codes, used = pd.factorize(np.minimum((middle * bins).astype(int), bins - 1))
    if len(used) < 2:
        raise InputError(f"shift {shift.name!r}", f"has {len(times)} different times", "It needs two.")
    names = []
    for index in range(len(used)):
        own = times[codes == index]
        names.append(f"{index + 1:0{len(str(bins))}d}: {_written(own[0])} to {_written(own[-1])}")
    return replace(shift, domain=torch.from_numpy(codes[place]), domains=tuple(names))


def in_order(shift: Shift, domains: Sequence[str]) -> Shift:
    """The same shift with its domains numbered in the order of the given names, which must be all of them."""
    for name in domains:
        if name not in shift.domains:
            raise InputError(f"domain {name!r}", "is not a domain of the data", nearest(name, shift.domains))
    if sorted(domains) != sorted(shift.domains):
        raise InputError("domains", f"are {len(domains)}", f"Name each of {', '.join(shift.domains)} once.")
    place = torch.tensor([list(domains).index(name) for name in shift.domains])
    return replace(shift, domain=place[shift.domain], domains=tuple(domains))


def in_sequence(shifts: Mapping[str, Shift]) -> Shift:
    """Data sets by name as the domains of one shift, in the order given; domains that they have are forgotten.

    They must agree in kind, classes, groups and columns. `time` counts them from 1.
    """
    if len(shifts) < 2:
        raise InputError("shifts", f"are {len(shifts)}", "Give two or more, by name.")
    parts = list(shifts.values())
    first = parts[0]
    for name, part in shifts.items():
        for what in ("kind", "classes", "groups"):
            if getattr(part, what) != getattr(first, what):
                raise InputError(
                    f"shift {name!r}", f"has {what} {getattr(part, what)}", f"The first has {getattr(first, what)}."
                )  # fmt: skip
    domain = torch.cat([torch.full((len(part),), index) for index, part in enumerate(parts)])
    optional: dict[str, Any] = {}
    for what in ("group", "weight"):
        values = [getattr(part, what) for part in parts]
        if all(value is not None for value in values):
            optional[what] = torch.cat(values)
    return Shift(
        name=first.name,
        kind=first.kind,
        inputs=_joined([part.inputs for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        domain=domain,
        classes=first.classes,
        domains=tuple(shifts),
        groups=first.groups if "group" in optional else (),
        time=np.asarray(domain) + 1,
        description=first.description,
        **optional,
    )


def _joined(inputs: Sequence[Any]) -> Any:
    first = inputs[0]
    if isinstance(first, pd.DataFrame):
        if any(list(part.columns) != list(first.columns) for part in inputs):
            raise InputError("tables", "have different columns", "Give all the same, in one order.")
        return pd.concat(inputs, ignore_index=True)
    if isinstance(first, np.ndarray):
        return np.concatenate(inputs)
    if isinstance(first, torch.Tensor):
        return torch.cat(list(inputs))
    if isinstance(first, list):
        return [item for part in inputs for item in part]
    raise InputError(
        "inputs", f"are {type(first).__name__}", "Join tables, arrays, images in memory or texts."
    )


def _written(time: Any) -> str:
    return str(time)[:10] if isinstance(time, np.datetime64) else f"{time:g}"
