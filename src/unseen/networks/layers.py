"""The layers of a network from its inputs to its head: what layer-wise rates and surgical fine-tuning act on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.networks.hypotheses import Members


def layer_parameters(network: Network) -> list[list[str]]:
    """Names of the parameters of each layer, in the order in which layers are defined; the last is the head.

    Sequences are taken apart, down to what is no sequence itself: a linear or convolutional layer, or a whole
    residual or transformer block. A normalization belongs to the layer before it, and what stands outside
    (position embeddings, class tokens) to the first. Raises `InputError` for a network of several members, whose
    layers have no common order.
    """
    if isinstance(network, Members):
        problem, remedy = "lie side by side in a network of several members", "Train all of it, at one rate."
        raise InputError("layers", problem, remedy)
    named = dict(network.named_parameters())
    layers: list[list[str]] = []
    for block in _blocks("featurizer", network.featurizer, outermost=True):
        own = [name for name in named if name.startswith(f"{block}.")]
        if layers and all(named[name].dim() < 2 for name in own):
            layers[-1] += own
        elif own:
            layers.append(own)
    placed = {name for layer in layers for name in layer}
    outside = [name for name in named if name.startswith("featurizer.") and name not in placed]
    if outside:
        layers[:1] = [outside + (layers[0] if layers else [])]
    return [*layers, [name for name in named if not name.startswith("featurizer.")]]


def _blocks(prefix: str, module: nn.Module, outermost: bool = False) -> Iterator[str]:
    children = [(name, child) for name, child in module.named_children() if list(child.parameters())]
    direct = list(module.parameters(recurse=False))
    if len(children) == 1 and not direct:
        yield from _blocks(f"{prefix}.{children[0][0]}", children[0][1], outermost)
    elif children and (outermost or isinstance(module, (nn.Sequential, nn.ModuleList))):
        for name, child in children:
            yield from _blocks(f"{prefix}.{name}", child)
    elif children or direct:
        yield prefix


def parse_layers(text: str) -> slice:
    """A position ("0" the first layer, "-1" the head) or range (":", "1:", ":-1") as Python counts."""
    found = re.fullmatch(r"\s*(-?\d+)\s*|\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", text)
    if not found:
        problem, remedy = (
            "is no position or range",
            'Give ":" for all, "-1" for the head, "0:2" for two layers.',
        )
        raise InputError(f"layers {text!r}", problem, remedy)
    if found[1] is not None:
        position = int(found[1])
        return slice(position, position + 1 or None)
    return slice(*(None if part is None else int(part) for part in (found[2], found[3])))


def train_only(network: Network, layers: str) -> None:
    """Let nothing but the named layers be trained (surgical fine-tuning, Lee et al. 2023, arXiv 2210.11466).

    What was frozen before stays frozen. Raises `InputError` when no trained parameter is left.
    """
    every = layer_parameters(network)
    kept = {name for layer in every[parse_layers(layers)] for name in layer}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in kept)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        problem = f"leaves nothing to train of {len(every)} layers"
        raise InputError(f"layers {layers!r}", problem, f"Name some from 0 to {len(every) - 1}.")
