"""Git Re-Basin: permute the hidden units of one network so that its weights match another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict
from unseen.errors import InputError

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
Axis = tuple[str, int]
"""A dimension of a named tensor."""


@dataclass(frozen=True)
class Permutation:
    """`size` hidden units, and the dimensions that run over them. A dimension of m x size entries (after a flatten)
    has m neighbours of each unit."""

    size: int
    axes: tuple[Axis, ...]


def sequential_axes(model: nn.Module) -> list[Permutation]:
    """One permutation a hidden layer, for networks that apply their modules in order (MLPs, plain CNNs).

    Linear and convolutional layers are linked output to input; batch and layer normalisation between them goes
    along. Inputs and outputs of the network stay as they are. Group normalisation of several groups and grouped
    convolutions mix or separate units: refused, as are networks with shortcuts (describe these by hand).
    """
    found: list[Permutation] = []
    size = 0
    axes: list[Axis] = []  # of the hidden units that are open
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            _check_plain(name, module)
            wide = module.weight.shape[1]
            if axes:
                if wide % size:
                    raise InputError(
                        f"module {name!r}",
                        f"takes {wide} inputs after {size} units",
                        "Is the network sequential?",
                    )
                found.append(Permutation(size, (*axes, (f"{prefix}weight", 1))))
            size, axes = module.weight.shape[0], [(f"{prefix}weight", 0)]
            if module.bias is not None:
                axes.append((f"{prefix}bias", 0))
        elif isinstance(module, NORMS):
            _check_plain(name, module)
            entries = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            axes += [(f"{prefix}{key}", 0) for key, value in entries if axes and value.dim()]
        elif list(module.parameters(recurse=False)):
            raise InputError(
                f"module {name!r}",
                f"is a {type(module).__name__}",
                "Describe its axes by hand as Permutations.",
            )
    if not found:
        raise InputError("network", "has no hidden layer", "There is nothing to permute.")
    return found


def _check_plain(name: str, module: nn.Module) -> None:
    if getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False):
        raise InputError(
            f"module {name!r}", "is a grouped or transposed convolution", "It can't be permuted."
        )
    if isinstance(module, nn.GroupNorm) and module.num_groups not in (1, module.num_channels):
        raise InputError(
            f"module {name!r}",
            f"normalises in {module.num_groups} groups",
            "Its units can't be permuted freely.",
        )


@torch.no_grad()
def align(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    permutations: Sequence[Permutation],
    *,
    generator: torch.Generator,
    sweeps: int = 100,
) -> StateDict:
    """`state` with its hidden units permuted to match `target` (Ainsworth et al. 2023, arXiv 2209.04836, section 3.2).

    Weight matching by coordinate descent (algorithm 1): the permutation of one layer after the other, in random
    order, is the assignment that maximises the sum of products with the target, the others held; until none
    changes. The network computes the same function as before. The result is a local optimum.
    """
    from scipy.optimize import linear_sum_assignment  # 40 MB that no other merge needs

    orders = [torch.arange(p.size) for p in permutations]
    for sweep in range(sweeps):
        changed = False
        for index in torch.randperm(len(permutations), generator=generator).tolist():
            one = permutations[index]
            gain = torch.zeros(one.size, one.size, dtype=torch.float64)
            for name, axis in one.axes:
                if state[name].is_floating_point():
                    others = [o if i != index else torch.arange(one.size) for i, o in enumerate(orders)]
                    moved = _permuted(name, state[name], permutations, others)
                    gain += _rows(target[name], axis, one.size) @ _rows(moved, axis, one.size).T
            _, best = linear_sum_assignment(gain.numpy(), maximize=True)
            found = torch.from_numpy(best)
            before, after = (float(gain.gather(1, o[:, None]).sum()) for o in (orders[index], found))
            if after > before + 1e-9 * abs(before):
                orders[index], changed = found, True
        if not changed and sweep:
            break
    return {name: _permuted(name, value, permutations, orders) for name, value in state.items()}


def _permuted(
    name: str, value: Tensor, permutations: Sequence[Permutation], orders: Sequence[Tensor]
) -> Tensor:
    for one, order in zip(permutations, orders, strict=True):
        for other, axis in one.axes:
            if other == name:
                shape = value.shape
                blocks = value.unflatten(axis, (one.size, shape[axis] // one.size))
                value = blocks.index_select(axis, order.to(value.device)).reshape(shape)
    return value


def _rows(value: Tensor, axis: int, size: int) -> Tensor:
    """(size, rest) in float64: what belongs to each unit."""
    blocks = value.double().cpu().unflatten(axis, (size, value.shape[axis] // size))
    return blocks.movedim(axis, 0).reshape(size, -1)
