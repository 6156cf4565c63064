"""What the layers of a network give out while it reads a batch, and what its dropout layers let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unseen.networks.base import Network

Observe = Callable[[Network, Any, dict[str, Tensor]], dict[str, Tensor]]
"""observe(network, inputs, layers) -> what to keep of a batch of B finished inputs: name -> (B, ...).

It is called during the one pass over the data; `layers` are the outputs of the layers for this batch.
"""

_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)


def tap_points(network: Network) -> dict[str, nn.Module]:
    """The module whose output is that of a layer, for every layer before the head, in the order of definition.

    Sequences are taken apart, down to layers or whole residual or transformer blocks. A layer ends with what
    follows it (normalization, activation), but before the pooling that makes a map into features. A featurizer
    without parameters has no layers.
    """
    return layers_of(network.featurizer)


def layers_of(featurizer: nn.Module) -> dict[str, nn.Module]:
    """`tap_points` of any module that makes features."""
    points: dict[str, nn.Module] = {}
    name = None
    for path, module in _steps("", featurizer, outermost=True):
        if any(parameter.dim() > 1 for parameter in module.parameters()):
            name = path
        if name is not None and not isinstance(module, _POOLING):
            points[name] = module
    return points


def _steps(path: str, module: nn.Module, outermost: bool = False) -> Iterator[tuple[str, nn.Module]]:
    children = list(module.named_children())
    direct = list(module.parameters(recurse=False))
    taken_apart = isinstance(module, (nn.Sequential, nn.ModuleList)) or (outermost and not direct)
    if children and taken_apart:
        for name, child in children:
            yield from _steps(f"{path}.{name}".lstrip("."), child)
    else:
        yield path or "featurizer", module


@contextmanager
def tapped(
    network: Network, change: Callable[[str, Tensor], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """While it lasts, a pass of `network` fills the dict with the output (B, ...) of each layer that it uses.

    change(layer, output) gives what the network goes on with in place of a layer's output.
    """
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or output.dim() < 2:
                return None
            seen[name] = output if change is None else change(name, output)
            return None if change is None else seen[name]

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in tap_points(network).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def as_map(output: Tensor) -> Tensor:
    """(B, C, P): C channels at P places, of an image's map (B, C, H, W), of tokens (B, P, C) or of a vector (B, C)."""
    if output.dim() == 2:
        return output.unsqueeze(2)
    return output.transpose(1, 2) if output.dim() == 3 else output.flatten(2)


def dropouts(network: Network) -> list[nn.Module]:
    """The network's dropout layers that drop anything."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return [module for module in network.modules() if isinstance(module, kinds) and module.p > 0]


@contextmanager
def dropping(network: Network, seed: int) -> Iterator[None]:
    """While it lasts, dropout drops in evaluation mode, too: the same units for every example, drawn from `seed`.

    So the answer for an input does not depend on the batch that it comes in.
    """

    def watch(module: Any, number: int) -> Callable[..., Tensor]:
        generator = torch.Generator().manual_seed(seed * 1009 + number)

        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            shape = list(output.shape[1:])
            if not isinstance(module, nn.Dropout):  # whole channels
                shape[1:] = [1] * (len(shape) - 1)
            kept = torch.rand(shape, generator=generator) >= module.p
            return output * (kept / max(1 - module.p, 1e-12)).to(output)

        return hook

    handles = [module.register_forward_hook(watch(module, i)) for i, module in enumerate(dropouts(network))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
