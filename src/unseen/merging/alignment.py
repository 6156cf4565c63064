"""Git Re-Basin: permute the hidden units of one network so that its weights match another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from unseen.averaging import StateDict
from unseen.errors import InputError, nearest
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint

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
    convolutions mix or separate units: refused, as are networks with shortcuts (describe these by hand) and those
    whose forward pass `torch.fx` cannot follow.
    """
    _require_chain(model)
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


def _require_chain(model: nn.Module) -> None:
    """Raise `InputError` unless every step of the forward pass takes what the one before it gave, and no other.

    Modules alone do not tell: a shortcut is a sum in the code of `forward`.
    """
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception as error:  # user code under a tracer fails in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            "network", f"cannot be followed ({reason})", "Describe its axes by hand as Permutations."
        ) from None
    sizes: set[fx.Node] = set()  # numbers, such as the batch's size for a view
    for node in nodes:
        asked = node.op == "call_method" and node.target in ("size", "dim")
        asked |= node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")
        if asked or (node.all_input_nodes and sizes.issuperset(node.all_input_nodes)):
            sizes.add(node)
    previous = None
    for node in nodes:
        if node in sizes:
            continue
        given = [each for each in node.all_input_nodes if each not in sizes]
        if given != ([] if previous is None else [previous]):
            raise InputError(
                "network",
                f"is no chain of modules: {node.name!r} takes {', '.join(each.name for each in given) or 'nothing'}",
                "Describe its axes by hand as Permutations.",
            )
        previous = node
    used = [str(node.target) for node in nodes if node.op == "call_module"]
    with_weights = [name for name in used if list(model.get_submodule(name).parameters())]
    defined = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    if with_weights != [name for name in defined if name in used] or len(defined) != len(with_weights):
        raise InputError(
            "network", "does not pass each of its layers once, in order", "Describe its axes by hand."
        )


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
    Raises `InputError` for states of other names or shapes, permutations that do not fit them, and NaN.
    """
    check_same_tensors([open_checkpoint(state, "the state"), open_checkpoint(target, "the target")])
    _check_fit(permutations, state, target)
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


def _check_fit(
    permutations: Sequence[Permutation], state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> None:
    for one in permutations:
        for name, axis in one.axes:
            if name not in state:
                raise InputError(f"axis of {name!r}", "is of no tensor of the state", nearest(name, state))
            shape = state[name].shape
            if not -len(shape) <= axis < len(shape) or shape[axis] % one.size:
                raise InputError(
                    f"axis {axis} of {name!r}",
                    f"does not run over {one.size} units: its shape is {tuple(shape)}",
                    "Are the permutations of this network?",
                )
            for label, found in (("the state", state[name]), ("the target", target[name])):
                if found.isnan().any():
                    raise InputError(f"tensor {name!r} of {label}", "has NaN", "Was its training lost?")


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
