"""What modules inside a network return, by their names: hidden states, attention, representations."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from unseen.errors import InputError, nearest


@contextlib.contextmanager
def named_outputs(network: nn.Module, names: str | Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, `network` leaves what the named modules return in the dictionary that this gives.

        with named_outputs(model, "blocks.*") as hidden:
            logits = model(x)
        hidden["blocks.0"]  # (B, T, width), with its gradient unless under no_grad

    names  of `network.named_modules()`, in the order wanted; in a pattern (`*`, `?`) in the order of definition.
           A pattern's `*` doesn't reach over a dot: "blocks.*" doesn't mean "blocks.0.attention"

    A module that returns a tuple or list, as transformers' do, is known by its first tensor. The hooks go when the
    block ends. Raises `InputError` for names that fit no module, at once; at the end of the block for a module that
    has not run or returned no tensor, and when one runs twice (a shared layer: its outputs have no names).
    """
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    chosen = _matching(names, [name for name in modules if name])
    hooks = [modules[name].register_forward_hook(partial(_keep, found, name)) for name in chosen]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in chosen if name not in found]:
        problem = "returned nothing: the network has not run, or not through them"
        raise InputError(
            f"modules {', '.join(missing)}", problem, "Name modules that the forward pass calls."
        )
    ordered = [(name, found.pop(name)) for name in chosen]
    found.update(ordered)


def layer_names(network: nn.Module) -> tuple[str, ...]:
    """Names of a network's layers, from its inputs on: the longest list of modules of one class.

    Transformers and residual networks keep their blocks so. Raises `InputError` when there are none: no hidden
    states can be had without naming modules.
    """
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(child) for child in module}) == 1
    ]
    if not lists:
        problem = "has no list of layers of one class: no hidden states are returned"
        raise InputError(
            f"network {type(network).__name__}", problem, "Name the modules whose outputs count."
        )
    name, layers = max(lists, key=lambda pair: len(pair[1]))
    prefix = f"{name}." if name else ""
    return tuple(f"{prefix}{child}" for child, _ in layers.named_children())


def logits_of(output: Any) -> Tensor:
    """What a network returns, as a tensor: itself, `.logits` (transformers) or the first of a tuple."""
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)):
        output = next(iter(output), None)
    if not isinstance(output, Tensor):
        problem = f"is {type(output).__name__}"
        raise InputError("output of the network", problem, "Give a network that returns logits.")
    return output


def _matching(names: str | Sequence[str], known: list[str]) -> list[str]:
    chosen: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        fitting = [
            each for each in known if each.count(".") == name.count(".") and fnmatch.fnmatchcase(each, name)
        ]
        if not fitting:
            raise InputError(f"module {name!r}", "is not in the network", nearest(name, known))
        chosen |= dict.fromkeys(fitting)
    return list(chosen)


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if name in found:
        problem = "ran twice in one block"
        raise InputError(
            f"module {name}", problem, "Open the block for each pass anew; shared layers have no names."
        )
    if isinstance(output, (tuple, list)):
        output = next((each for each in output if isinstance(each, Tensor)), None)
    if not isinstance(output, Tensor):
        problem = "returned no tensor"
        raise InputError(
            f"module {name}", problem, "Name a module that returns a tensor, or a tuple with one."
        )
    found[name] = output
