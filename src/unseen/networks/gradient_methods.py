"""Three ways to the gradients of single examples: linear layers' factors, vmap, and a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from unseen.errors import InputError
from unseen.networks.gradient_rows import DenseRows, OuterRows, Rows, full_precision
from unseen.shifts.batch import map_tensors

Model = Callable[..., Any]
ExampleLoss = Callable[[Model, Any, Any], Tensor]
"""loss(model, x, y) -> (n,): one loss an example. `model` has the parameters under study; just call it."""

Found = tuple[dict[str, Rows], Tensor]
"""Gradients by name of parameter, and losses (n,)."""


class LossOfParameters:
    """The losses as a function of the chosen parameters; everything else of the module is held fixed."""

    def __init__(self, module: nn.Module, loss: ExampleLoss, names: tuple[str, ...]):
        self.module, self.loss = module, loss
        rest = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self.chosen = {name: rest.pop(name) for name in names}
        # copies, so that a module that counts its calls does so on them
        self.rest = {**rest, **{name: buffer.clone() for name, buffer in module.named_buffers()}}

    def __call__(self, chosen: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
        state = {**chosen, **self.rest}
        losses = self.loss(lambda *args, **options: functional_call(self.module, state, args, options), x, y)
        size = len(next(leaves(y)))
        if losses.shape != (size,):
            raise InputError(
                "loss",
                f"has shape {tuple(losses.shape)} for {size} example(s)",
                "Return one number an example, as with reduction='none'.",
            )
        return losses


def by_vmap(losses: LossOfParameters, x: Any, y: Any) -> Found:
    """One program over all examples, by `torch.func`."""

    def one(chosen: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        return losses(chosen, *(map_tensors(lambda t: t.unsqueeze(0), tree) for tree in (x, y)))[0]

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention of CPUs has no batching rule
            gradients, values = vmap(grad_and_value(one), in_dims=(None, 0, 0))(losses.chosen, x, y)
    except RuntimeError as error:
        raise InputError(
            "method 'vmap'",
            f"cannot trace this module and loss ({str(error).splitlines()[0]})",
            "Give method='loop', which is slower and takes any.",
        ) from error
    return {name: DenseRows(full_precision(each)) for name, each in gradients.items()}, values


def by_loop(losses: LossOfParameters, x: Any, y: Any) -> Found:
    """A forward and a backward pass an example."""
    chosen = {name: value.clone().requires_grad_() for name, value in losses.chosen.items()}
    gradients, values = [], []
    for index in range(len(next(leaves(y)))):
        part = [map_tensors(itemgetter(slice(index, index + 1)), tree) for tree in (x, y)]
        loss = losses(chosen, *part)[0]
        found = torch.autograd.grad(loss, list(chosen.values()), materialize_grads=True)
        gradients.append([full_precision(value) for value in found])
        values.append(loss.detach())
    stacked = (DenseRows(torch.stack(each)) for each in zip(*gradients, strict=True))
    return dict(zip(chosen, stacked, strict=True)), torch.stack(values)


def by_layers(losses: LossOfParameters, x: Any, y: Any, layers: Mapping[str, nn.Linear]) -> Found:
    """One forward pass, and one backward pass to the outputs of linear layers: no gradient is multiplied out."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:  # the parameters here are constants: the first layers' outputs start it
            output.requires_grad_()
        calls[name].append((inputs[0].detach(), output))

    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        values = losses(losses.chosen, x, y)
    finally:
        for hook in hooks:
            hook.remove()
    for name, made in calls.items():
        if not made or any(inputs.dim() < 2 or len(inputs) != len(values) for inputs, _ in made):
            raise InputError(
                f"layer {name!r}",
                "is not called as a layer, with examples in the first dimension",
                "Give method='vmap'.",
            )
    outputs = [output for made in calls.values() for _, output in made]
    slopes = iter(torch.autograd.grad(values.sum(), outputs, materialize_grads=True))
    rows: dict[str, Rows] = {}
    for name, made in calls.items():
        prefix = f"{name}." if name else ""
        left = torch.cat([_positions(next(slopes)) for _ in made], 1)
        rows[f"{prefix}weight"] = OuterRows(left, torch.cat([_positions(inputs) for inputs, _ in made], 1))
        rows[f"{prefix}bias"] = DenseRows(left.sum(1))
    return {name: rows[name] for name in losses.chosen}, values.detach()


def linear_layers(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Linear] | None:
    """The linear layers by name whose parameters `names` are; None if some belong to anything else.

    Subclasses (such as attention's output layer, which is never called) and shared parameters are anything
    else.
    """
    owners = [id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)]
    known, found = dict(module.named_parameters()), {}
    for name in names:
        owner = name.rpartition(".")[0]
        layer = module.get_submodule(owner)
        if type(layer) is not nn.Linear or owners.count(id(known[name])) > 1:
            return None
        found[owner] = layer
    return found


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tensor or (nested) dict of tensors."""
    if isinstance(tree, dict):
        for part in tree.values():
            yield from leaves(part)
    else:
        yield tree


def _positions(tensor: Tensor) -> Tensor:
    """(n, ..., F) as (n, T, F)."""
    return full_precision(tensor.reshape(len(tensor), -1, tensor.shape[-1]))
