"""How sparse a network is, and what that could save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.modes import evaluating
from unseen.networks.pruning import prunable


def sparsity(model: nn.Module, exclude: Sequence[str] = ()) -> float:
    """Share of zeros among the weights that may be pruned (`unseen.networks.pruning.prunable`), in [0, 1]."""
    weights = prunable(model, exclude).values()
    if not weights:
        raise InputError("the network", "has no weight that may be pruned", "Exclude less.")
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def layer_sparsity(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, float]:
    """Share of zeros in each of these weights."""
    return {name: float((w == 0).double().mean()) for name, w in prunable(model, exclude).items()}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one example, two a product and sum: of all weights, and of those not zero."""

    dense: float
    sparse: float

    @property
    def speedup(self) -> float:
        """What a computation that skips every zero would gain: an upper bound."""
        return self.dense / self.sparse if self.sparse else float("inf")


@torch.no_grad()
def flops_estimate(model: nn.Module, x: Any) -> Flops:
    """Operations with the weights of linear, convolutional and attention layers, for a batch of inputs `x`.

    Without attention's products of activations, normalisation, activations and biases. In evaluation mode.
    """
    totals = [0.0, 0.0]

    def add(weight: Tensor, uses: float) -> None:
        totals[0] += 2 * uses * weight.numel()
        totals[1] += 2 * uses * int((weight != 0).sum())

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):  # it calls no modules for its projections
            query, key = inputs[0], inputs[1]
            if module.in_proj_weight is not None:
                for part, tokens in zip(module.in_proj_weight.chunk(3), inputs[:3], strict=True):
                    add(part, tokens.numel() / tokens.shape[-1])
            else:
                for part, tokens in (
                    (module.q_proj_weight, query),
                    (module.k_proj_weight, key),
                    (module.v_proj_weight, inputs[2]),
                ):
                    add(part, tokens.numel() / tokens.shape[-1])
            add(module.out_proj.weight, query.numel() / query.shape[-1])
        elif isinstance(module, nn.Linear):
            add(module.weight, output.numel() / module.out_features)
        elif module.transposed:  # type: ignore[union-attr]
            add(module.weight, inputs[0].numel() / module.in_channels)  # type: ignore[arg-type, union-attr]
        else:
            add(module.weight, output.numel() / module.out_channels)  # type: ignore[arg-type, union-attr]

    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    try:
        with evaluating(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    examples = len(next(iter(x.values())) if isinstance(x, dict) else x)
    return Flops(totals[0] / examples, totals[1] / examples)
