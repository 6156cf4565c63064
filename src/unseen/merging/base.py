"""The merging contract: a method is a pure function from tensors of one name to one tensor.

A method is registered with `unseen.registry.merging` and has the form

    method(tensors, base, *, option=default, ...) -> Tensor

`tensors` are the models' tensors, one a model, floating point and of one shape; it may be walked through more
than once, but each walk may read from disk. `base` is what the models were tuned from: without a default it is
needed, with one it is optional, left out it is not used. `generator` is given to methods that draw. Options
annotated `PerModel` are one number for all models or one a model; others are the same for all models. A method
marked `elementwise` is called with stretches of flattened tensors when it streams; so is one marked `after_a_look`,
with what a first pass over all stretches has found.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.registry import Entry, Spec, merging

PerModel = float | Sequence[float]

CONTEXT = ("tensors", "base", "generator", "fisher", "seen")
"""What a merge gives to a method; everything else is an option."""
STRETCH = 1 << 18
"""Numbers that are merged at a time where that is possible: 3 MB for two models in float32, which caches hold.
Measured: reads, arithmetic and writes of 2^18 numbers take 0.83 times as long as those of 2^20."""


@dataclass(frozen=True)
class Method:
    """A registered method with its options checked."""

    entry: Entry
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: str | Spec, **options: Any) -> Method:
        """Raises `InputError` for an unknown method or option, with the nearest name."""
        spec = Spec.of(spec)
        entry = merging.check(spec.with_options(**options), CONTEXT)
        return cls(entry, {**spec.options, **options})

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def base(self) -> Literal["needed", "optional", "unused"]:
        parameter = self._parameters.get("base")
        if parameter is None:
            return "unused"
        return "needed" if parameter.default is parameter.empty else "optional"

    @property
    def draws(self) -> bool:
        return "generator" in self._parameters

    @property
    def weighs_by_fisher(self) -> bool:
        return "fisher" in self._parameters

    @functools.cached_property
    def elementwise(self) -> bool:
        """Whether each number is merged by itself, so that tensors can be merged a stretch at a time."""
        options = {**self.entry.options(), **self.options}
        return (
            getattr(self.entry.target, "elementwise", False) and options.get("sparsifier", "none") == "none"
        )

    @property
    def look(self) -> Callable[[Iterable[tuple[Sequence[Tensor], Tensor]]], Any] | None:
        """What must see all stretches (tensors, base) before the method, which gets the result as `seen`."""
        return getattr(self.entry.target, "look", None)

    @property
    def streams(self) -> bool:
        """Whether tensors can be merged a stretch at a time."""
        return self.elementwise or self.look is not None

    def option_names(self) -> list[str]:
        return [name for name in self.entry.options() if name not in CONTEXT]

    def is_per_model(self, option: str) -> bool:
        """Whether an option may differ between models."""
        annotation = self._parameters[option].annotation
        return "PerModel" in annotation if isinstance(annotation, str) else annotation == PerModel

    def check_option(self, option: str) -> None:
        if option not in self.option_names():
            raise InputError(
                f"option {option!r} of merging method {self.name!r}",
                "is not known",
                nearest(option, self.option_names()) or "It takes no options.",
            )

    def __call__(self, tensors: Sequence[Tensor], **context: Any) -> Tensor:
        return self.entry.target(tensors, **{**self.entry.preset, **self.options, **context})

    @functools.cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.entry.target).parameters


def elementwise(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark a method that merges each number by itself (as far as it does not sparsify)."""
    method.elementwise = True  # type: ignore[attr-defined]
    return method


def after_a_look(
    look: Callable[[Iterable[tuple[Sequence[Tensor], Tensor]]], Any],
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Mark a method that merges each number by itself once it knows what `look` finds in the whole tensors."""

    def mark(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        method.look = look  # type: ignore[attr-defined]
        return method

    return mark


def per_model(name: str, value: PerModel, count: int) -> list[float]:
    """One number a model; raises `InputError` when there are more or fewer."""
    if isinstance(value, (int, float)):
        return [float(value)] * count
    if len(value) != count:
        raise InputError(name, f"has {len(value)} numbers for {count} models", "Give one a model.")
    return [float(number) for number in value]


def check_share(name: str, value: float, extrapolate: bool = False) -> float:
    """`value`, which must lie in [0, 1] unless the caller asks to extrapolate."""
    if not extrapolate and not 0 <= value <= 1:
        raise InputError(
            name, f"is {value}, outside [0, 1]", "Give extrapolate=True (--extrapolate) if that is meant."
        )
    return float(value)


def only_other(tensors: Sequence[Tensor], method: str) -> Tensor:
    """The one tensor beside the base."""
    if len(tensors) != 1:
        raise InputError(
            f"method {method!r}", f"got {len(tensors)} models beside the base", "It takes exactly one."
        )
    return next(iter(tensors))


def at_least(tensors: Sequence[Tensor], count: int, method: str) -> list[Tensor]:
    """All tensors in memory."""
    if len(tensors) < count:
        raise InputError(f"method {method!r}", f"got {len(tensors)} models", f"It takes {count} or more.")
    return list(tensors)


def one_of(name: str, value: str, options: Iterable[str]) -> str:
    options = list(options)
    if value not in options:
        raise InputError(f"{name} {value!r}", "is not known", nearest(str(value), options))
    return value
