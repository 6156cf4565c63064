"""Low-rank updates of frozen weights (LoRA), alone or in groups, in any module that holds a matrix.

An update is a parametrization of the weight, W + scale * sum_i B_i A_i, not a module beside it. So it also reaches
weights that no module applies by itself (`nn.MultiheadAttention` hands its own to a fused kernel), and the names
of a merged model are those of the model before. The price is the gradient of the full weight, which autograd forms
on the way to the factors: for the query and value of a transformer a twelfth of the products of a training step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unseen.errors import InputError, nearest

QUERY_AND_VALUE = ("q", "v")
_SYNONYMS = {"query": "q", "key": "k", "value": "v"}
_SYNONYMS |= {f"{part}_{ending}": part for part in "qkv" for ending in ("proj", "lin")}
_FUSED = {"qkv", "in_proj", "c_attn", "Wqkv"}
"""Modules whose outputs are those of query, key and value, one after the other. GPT-NeoX' `query_key_value` is not
among them: it deals them out head by head."""


@dataclass(frozen=True)
class Layout:
    """How a weight holds matrices of `out` outputs x `in` inputs, and which of them are updated.

    sections    matrices that the weight holds one after the other: 3 for fused query, key and value
    parts       indices of the updated ones
    transposed  the weight is (in, out), as in GPT-2's Conv1D
    """

    sections: int = 1
    parts: tuple[int, ...] = (0,)
    transposed: bool = False

    def matrices(self, weight: Tensor) -> Tensor:
        """The updated matrices of a weight, (P, out, in). Kernels of convolutions are flattened to inputs."""
        flat = weight.mT if self.transposed else weight.flatten(1)
        return flat.unflatten(0, (self.sections, -1))[list(self.parts)]

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrices`, with zeros in the other sections."""
        zeros = torch.zeros_like(matrices[0])
        order = [self.parts.index(s) if s in self.parts else None for s in range(self.sections)]
        flat = torch.cat([zeros if index is None else matrices[index] for index in order])
        return flat.mT if self.transposed else flat.reshape(shape)


class LowRank(nn.Module):
    """Parametrization W -> W + scale * sum_i B_i A_i of the P updated matrices of one weight by N groups.

    down   A, (P, N, rank, in), uniform in +-1/sqrt(in) at first (Kaiming with a = sqrt 5, as LoRA's code has it)
    up     B, (P, N, out, rank), zero at first, so that injecting changes nothing
    scale  alpha / rank, or 1
    The factors stay in single precision (double for double weights) whatever precision the weight has.
    """

    def __init__(
        self,
        weight: Tensor,
        layout: Layout,
        *,
        rank: int,
        groups: int = 1,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        parts, outputs, inputs = layout.matrices(weight).shape
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.layout, self.scale = layout, scale
        down = torch.empty(parts, groups, rank, inputs, dtype=dtype)
        down.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(parts, groups, outputs, rank, dtype=dtype, device=weight.device))

    @property
    def groups(self) -> int:
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        """Of one member of the group."""
        return self.down.shape[2]

    def updates(self) -> Tensor:
        """Each member's own update, (P, N, out, in)."""
        return self.scale * (self.up @ self.down)

    def total(self) -> Tensor:
        """The sum over the group, (P, out, in), as one product of rank N * rank."""
        return self.scale * (self.up.transpose(1, 2).flatten(2) @ self.down.flatten(1, 2))

    def forward(self, weight: Tensor) -> Tensor:
        kind = weight.device.type
        if self.up.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(kind):
            raise InputError(
                "low-rank updates",
                f"are {self.up.dtype} under autocast, where small ones vanish",
                "Leave the model in float32: autocast lowers the precision of products by itself.",
            )
        with torch.autocast(kind, enabled=False):
            return weight + self.layout.weight(self.total(), weight.shape).to(weight.dtype)


class Updated(NamedTuple):
    """A weight with low-rank updates: its dotted name, its frozen value and the updates."""

    name: str
    weight: Tensor
    update: LowRank


def low_rank_updates(model: nn.Module) -> list[Updated]:
    """Every weight of `model` that has low-rank updates, in the order of its modules."""
    return [
        Updated(path.replace("parametrizations.", ""), module.original, module[0])  # type: ignore[arg-type]
        for path, module in model.named_modules()
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], LowRank)
    ]


def inject_low_rank(
    model: nn.Module,
    targets: str | Sequence[str] = QUERY_AND_VALUE,
    *,
    rank: int = 4,
    groups: int = 1,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Freeze `model` and give the targeted weights trainable low-rank updates, in place; returns `model`.

    targets    projections by the end of their name ("q" also means query, q_proj and q_lin; "mlp.fc1"), or one
               regular expression for whole dotted names. `nn.MultiheadAttention` and fused layers (qkv, in_proj,
               Wqkv, c_attn) have the projections NAME.q, NAME.k and NAME.v. Linear layers, convolutions without
               channel groups and transformers' Conv1D can be targets.
    rank       r of each update, below both sides of the matrix
    groups     N updates side by side on each matrix; without a penalty they amount to one of rank N r
    alpha      updates are scaled by alpha / rank; None leaves them as they are (PEGO)
    generator  draws the factors A; None uses torch's global one, as other layers do
    Raises `InputError` when nothing matches, a rank is too high, or a weight is packed or already updated.
    """
    for name, value in (("rank", rank), ("groups", groups)):
        if value < 1:
            raise InputError(name, f"is {value}", "Give a whole number from 1.")
    chosen = _chosen(model, targets)
    for (path, parameter), layout in chosen.items():
        _check(model, path, parameter, layout, rank)
    model.requires_grad_(False)
    for (path, parameter), layout in chosen.items():
        module = model.get_submodule(path)
        attach(module, parameter, layout, rank=rank, groups=groups, alpha=alpha, generator=generator)
    return model


def attach(
    module: nn.Module,
    parameter: str,
    layout: Layout,
    *,
    rank: int,
    groups: int,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Give one weight of one module low-rank updates; what `inject_low_rank` does for each target."""
    scale = 1.0 if alpha is None else alpha / rank
    weight = getattr(module, parameter)
    update = LowRank(weight, layout, rank=rank, groups=groups, scale=scale, generator=generator)
    parametrize.register_parametrization(module, parameter, update)
    return update


def merge_low_rank(model: nn.Module) -> list[Updated]:
    """Add the updates to their weights and remove them, in place: the model is as fast as before, names included.

    Returns what `unmerge_low_rank` needs to go back, bit by bit. Raises `InputError` when there is nothing to merge.
    """
    found = low_rank_updates(model)
    if not found:
        raise InputError(
            "model",
            "has no low-rank updates, or they are merged already",
            "Inject them first (inject_low_rank).",
        )
    # detached: removing the parametrization gives the parameter new storage, this keeps the old one
    undo = [Updated(name, weight.detach(), update) for name, weight, update in found]
    for name, _, _ in undo:
        module, parameter = owner(model, name)
        kind = type(
            module
        )  # made for this module, but shared with deep copies: removing changes the class itself
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)
    return undo


@torch.no_grad()
def unmerge_low_rank(model: nn.Module, undo: Sequence[Updated]) -> None:
    """Restore what `merge_low_rank` merged: the weights as they were, and the updates beside them."""
    if low_rank_updates(model):
        raise InputError("model", "has low-rank updates: they are not merged", "Merge before you unmerge.")
    for name, weight, update in undo:
        module, parameter = owner(model, name)
        getattr(module, parameter).copy_(weight)
        parametrize.register_parametrization(module, parameter, update)


def low_rank_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The factors of all updates: what an optimizer should get, beside a new head."""
    return (parameter for _, _, update in low_rank_updates(model) for parameter in update.parameters())


def low_rank_state(model: nn.Module) -> dict[str, Tensor]:
    """The factors alone, as NAME.down and NAME.up."""
    return {
        f"{name}.{factor}": value.detach()
        for name, _, update in low_rank_updates(model)
        for factor, value in update.named_parameters()
    }


@torch.no_grad()
def load_low_rank_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what `low_rank_state` gave into updates of the same names and shapes."""
    own = low_rank_state(model)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[0]
        side = "is lacking" if odd in own else "belongs to no update of the model"
        raise InputError("low-rank state", f"does not fit: {odd!r} {side}", "Inject the same targets first.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise InputError(
                f"low-rank state {name!r}",
                f"has shape {tuple(state[name].shape)}, the model's is {tuple(value.shape)}",
                "Inject updates of the same rank and number of groups first.",
            )
        value.copy_(state[name])


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all of them."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a weight of dotted `name`, and the weight's own name there."""
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter


# Targets -------------------------------------------------------------------------------------------------


class _Projection(NamedTuple):
    name: str
    path: str
    parameter: str
    layout: Layout


def _projections(model: nn.Module) -> Iterator[_Projection]:
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield from _thirds(path, "in_proj_weight", transposed=False)
        elif isinstance(module, (nn.Linear, nn.Conv2d)) or is_conv1d(module):
            transposed = is_conv1d(module)
            yield _Projection(path, path, "weight", Layout(transposed=transposed))
            if path.rpartition(".")[2] in _FUSED and _is_threefold(module):
                yield from _thirds(path, "weight", transposed)


def _thirds(path: str, parameter: str, transposed: bool) -> Iterator[_Projection]:
    for index, part in enumerate("qkv"):
        yield _Projection(f"{path}.{part}".lstrip("."), path, parameter, Layout(3, (index,), transposed))


def _is_threefold(module: Any) -> bool:
    outputs, inputs = module.weight.T.shape if is_conv1d(module) else module.weight.flatten(1).shape
    return outputs == 3 * inputs


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' linear layer with a transposed weight; by name, so as not to import it."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _chosen(model: nn.Module, targets: str | Sequence[str]) -> dict[tuple[str, str], Layout]:
    """Layouts of the targeted weights; thirds of one weight are put together, and the whole includes them."""
    chosen: dict[tuple[str, str], Layout] = {}
    names = []
    for name, path, parameter, layout in _projections(model):
        names.append(name)
        if not _matches(name, targets):
            continue
        known = chosen.get((path, parameter))
        if known is None:
            chosen[path, parameter] = layout
        elif known.sections == layout.sections:
            chosen[path, parameter] = Layout(
                layout.sections, known.parts + layout.parts, transposed=layout.transposed
            )
    if not chosen:
        wanted = targets if isinstance(targets, str) else (*targets, "")[0]
        raise InputError(
            f"targets {targets!r}",
            "match no linear layer, attention or convolution of the model",
            nearest(wanted, names) or "The model has none.",
        )
    return chosen


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise InputError(
                f"targets {targets!r}", f"is no regular expression ({error})", "Write one such as '.*fc1'."
            ) from None
    last = name.rpartition(".")[2]
    return _SYNONYMS.get(last, last) in targets or any(f".{name}".endswith(f".{t}") for t in targets)


def _check(model: nn.Module, path: str, parameter: str, layout: Layout, rank: int) -> None:
    module = model.get_submodule(path)
    weight: Tensor = getattr(module, parameter)
    subject = f"weight {path}.{parameter}".replace(" .", " ")
    if parametrize.is_parametrized(module, parameter):
        raise InputError(subject, "has an update already", "Merge the first one before you inject another.")
    if not weight.is_floating_point():
        raise InputError(
            subject, f"is packed as {weight.dtype}", "Load the model in floating point (no quantisation)."
        )
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise InputError(subject, f"works on {module.groups} channel groups", "Leave it out of the targets.")
    shape = tuple(layout.matrices(weight).shape[1:])
    if rank >= min(shape):
        raise InputError("rank", f"is {rank}, but {subject} is {shape[0]} x {shape[1]}", "Give a lower rank.")
