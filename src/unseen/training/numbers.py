"""Numbers among an objective's settings: found by path, and replaced by tensors that hold one value a run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from unseen.objectives import Objective

Number = int | float

_MODULE_FIELDS = frozenset(vars(nn.Module()))


def _inner(value: Any) -> dict[str, Any]:
    """What a module, dictionary or data class holds; modules without their own machinery."""
    if isinstance(value, nn.Module):
        return {name: inner for name, inner in vars(value).items() if name not in _MODULE_FIELDS}
    if isinstance(value, dict):
        return {str(name): inner for name, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def settings(value: Any, path: str = "") -> dict[str, Any]:
    """Every plain value that an objective holds, also in dictionaries and data classes, by dotted path."""
    found: dict[str, Any] = {}
    for name, inner in _inner(value).items():
        found |= settings(inner, f"{path}{name}.") or {f"{path}{name}": inner}
    return found


def numbers(objective: Objective) -> dict[str, Number]:
    """The settings that are numbers, whole or not."""
    return {path: v for path, v in settings(objective).items() if type(v) in (int, float)}


@contextlib.contextmanager
def with_numbers(objective: Objective, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The objective with the given settings replaced, inside the block."""
    before = _inner(objective)
    if values:
        vars(objective).update({name: _replaced(inner, name, values) for name, inner in before.items()})
    try:
        yield
    finally:
        vars(objective).update(before)


def _replaced(value: Any, path: str, values: Mapping[str, Tensor]) -> Any:
    if path in values:
        return values[path]
    if not any(name.startswith(path + ".") for name in values):
        return value
    inner = {name: _replaced(v, f"{path}.{name}", values) for name, v in _inner(value).items()}
    if isinstance(value, dict):
        return inner
    twin = copy.copy(value)  # not dataclasses.replace: its checks of plain numbers cannot read tensors
    for name, v in inner.items():
        object.__setattr__(twin, name, v)
    return twin
