"""Merging state dicts in memory, and the arithmetic on one tensor that streaming shares."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.merging.base import Method
from unseen.merging.checkpoints import (
    Checkpoint,
    TensorInfo,
    check_same_form,
    check_same_tensors,
    missing,
    open_checkpoint,
)
from unseen.registry import Spec

Source = Checkpoint | Mapping[str, Tensor] | str | Path
Read = Callable[[], tuple[Tensor, str]]
"""Gives a tensor and the label of the model that it is from."""


@torch.no_grad()
def merge(
    models: Sequence[Source],
    method: str | Spec,
    *,
    base: Source | None = None,
    fisher: Sequence[Source] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """One state dict out of several, by the name of a method (`unseen list merging`) and its options.

    models  state dicts, .safetensors files or folders; names and shapes must be the same
    base    what they were tuned from, for methods that want it; two models without a named base: the first
    fisher  for method "fisher", the diagonals, one a model
    dtype   of the result; default the first model's (the base's), tensor by tensor

    Arithmetic is in float32 (float64 where a model is). Tensors that are not floating point (counters, masks)
    are not averaged: they are the base's, or the first model's. Tied tensors stay tied. Batch statistics that differ
    are averaged with a warning, as they fit no merged weights: estimate them anew.

        merge([a, b, c], "ties", base=start, density=0.2, weight=[0.5, 0.3, 0.2])
    """
    chosen = Method.of(method, **options)
    if not models:
        raise InputError("models", "are none", "Give one or more.")
    opened = [open_checkpoint(m, f"model {i}") for i, m in enumerate(models)]
    root = None if base is None else open_checkpoint(base, "the base")
    opened, root = with_base(chosen, opened, root)
    information = [open_checkpoint(f, f"Fisher information {i}") for i, f in enumerate(fisher or ())]
    check_fisher(chosen, len(opened), len(information))
    every = [*opened, *([] if root is None else [root])]
    check_same_tensors(every)
    for name in every[0].tensors:
        if warn_of_statistics(name, (each.read(name) for each in every)):
            break
    return merge_opened(chosen, opened, root, information, seed=seed, dtype=dtype)


@torch.no_grad()
def merge_opened(
    chosen: Method,
    opened: Sequence[Checkpoint],
    root: Checkpoint | None = None,
    information: Sequence[Checkpoint] = (),
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """`merge` of opened checkpoints, for those who estimate batch statistics themselves."""
    check_same_tensors([*opened, *([] if root is None else [root])])
    leading = root or opened[0]
    for each in information:
        check_covers(each, leading)
    ties = leading.aliases()
    result: dict[str, Tensor] = {}
    for name, info in leading.tensors.items():
        if name in ties:
            result[name] = result[ties[name]]
            continue
        if not is_merged(info):
            result[name] = leading.read(name).clone()
            continue
        merged = merge_tensor(
            chosen,
            name,
            [_reader(model, name) for model in opened],
            base=None if root is None else _reader(root, name),
            fisher=[_reader(each, name) for each in information],
            seed=seed,
        )
        result[name] = in_type(merged, dtype or info.dtype, name)
    return result


def merge_tensor(
    method: Method,
    name: str,
    tensors: Sequence[Read],
    *,
    base: Read | None = None,
    fisher: Sequence[Read] = (),
    seed: int = 0,
    seen: Any = None,
) -> Tensor:
    """The merged tensor in float32 (or float64); inputs are read when the method asks for them.

    Draws depend on (seed, name) alone, so that a merge that goes on after an interruption is the same.
    Raises `InputError` when an input or the result has NaN.
    """
    context: dict[str, Any] = {} if seen is None else {"seen": seen}
    # in a sum, NaN shows in the result: one look instead of one a model
    check = seen is None and not method.elementwise
    if method.base != "unused":
        context["base"] = None if base is None else Inputs([base], name, check)[0]
    if method.draws:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        context["generator"] = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    if method.weighs_by_fisher:
        context["fisher"] = Inputs(fisher, name, check)
    merged = method(Inputs(tensors, name, check), **context)
    if _has_nan(merged):
        list(Inputs([*tensors, *([] if base is None else [base]), *fisher], name, check=True))
        raise InputError(
            f"tensor {name!r}", f"became NaN by method {method.name!r}", "Are there infinite weights?"
        )
    return merged


def in_type(merged: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The merged tensor as it is stored. Raises `InputError` when numbers are too large for the type."""
    stored = merged.to(dtype)
    small = torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
    if small and bool(merged.isfinite().all()) and not bool(stored.float().isfinite().all()):
        raise InputError(
            f"tensor {name!r}", f"has numbers too large for {dtype}", "Choose bfloat16 or float32."
        )
    return stored


def warn_of_statistics(name: str, tensors: Iterable[Tensor]) -> bool:
    """Warn, and say so, when a running mean of batch normalisation is not the same in all models."""
    if not name.endswith("running_mean"):
        return False
    first, *others = tensors
    differ = any(not torch.equal(first, other) for other in others)
    if differ:
        warnings.warn(
            f"batch statistics differ ({name!r}), and their mean fits no merged weights: estimate them anew on "
            "training inputs (unseen.averaging.estimate_batch_statistics) before the model is used",
            UnseenWarning,
            stacklevel=3,
        )
    return differ


def is_merged(info: TensorInfo) -> bool:
    """Whether a tensor is averaged; counters, masks and empty tensors are the base's, or the first model's."""
    return info.dtype.is_floating_point and info.bytes > 0


def with_base(
    method: Method, models: list[Checkpoint], base: Checkpoint | None
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """Models and base as the method takes them."""
    if method.base == "unused":
        if base is not None:
            raise InputError("base", f"is not used by method {method.name!r}", "Leave it out, or list it.")
        return models, None
    if base is None and method.base == "needed":
        if len(models) != 2:
            raise InputError(
                f"method {method.name!r}",
                "needs a base model",
                "Name the one that the models were tuned from.",
            )
        return models[1:], models[0]
    return models, base


def check_fisher(method: Method, models: int, diagonals: int) -> None:
    if diagonals != (models if method.weighs_by_fisher else 0):
        problem = f"got {diagonals} Fisher diagonals for {models} models"
        remedy = "Give one a model." if method.weighs_by_fisher else "Only method 'fisher' takes them."
        raise InputError(f"method {method.name!r}", problem, remedy)


def check_covers(diagonal: Checkpoint, model: Checkpoint) -> None:
    """Raise `InputError` unless a Fisher diagonal has every tensor of the model that is merged."""
    for name, info in model.tensors.items():
        if is_merged(info):
            if name not in diagonal.tensors:
                raise missing(name, model, diagonal)
            check_same_form(name, info, diagonal.tensors[name], model.label, diagonal.label)


class Inputs(Sequence[Tensor]):
    """Tensors of one name, read at each access, in the precision of the arithmetic."""

    def __init__(self, reads: Sequence[Read], name: str, check: bool):
        self._reads, self._name, self._check = reads, name, check

    def __len__(self) -> int:
        return len(self._reads)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        tensor, label = self._reads[index]()
        tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if self._check and _has_nan(tensor):
            raise InputError(f"tensor {self._name!r} of {label}", "has NaN", "Was its training lost?")
        return tensor


def _has_nan(tensor: Tensor) -> bool:
    # one pass over the numbers; only a sum that is not finite is worth a closer look
    return not math.isfinite(float(tensor.sum())) and bool(tensor.isnan().any())


def _reader(checkpoint: Checkpoint, name: str) -> Read:
    return lambda: (checkpoint.read(name), checkpoint.label)
