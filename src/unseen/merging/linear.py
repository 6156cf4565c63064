"""Straight lines and means between weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import PerModel, at_least, check_share, elementwise, only_other, per_model
from unseen.registry import merging


@merging.register(
    "linear", summary="Weighted mean of the weights", paper="Wortsman et al. 2022, arXiv 2203.05482"
)
@elementwise
def linear(tensors: Sequence[Tensor], *, weight: PerModel = 1.0, normalize: bool = True) -> Tensor:
    """sum_k w_k theta_k, divided by sum_k w_k when `normalize` (model soups, arXiv 2203.05482)."""
    weights = per_model("weight", weight, len(tensors))
    if normalize:
        total = sum(weights)
        if abs(total) < 1e-8:
            raise InputError("weight", "adds up to 0", "Give normalize=False, or other weights.")
        weights = [each / total for each in weights]
    result: Tensor | None = None
    for each, tensor in zip(weights, tensors, strict=True):
        result = tensor * each if result is None else result.add_(tensor, alpha=each)
    if result is None:
        raise InputError("method 'linear'", "got no models", "It takes one or more.")
    return result


@merging.register(
    "uniform_soup", summary="Plain mean of the weights", paper="Wortsman et al. 2022, arXiv 2203.05482"
)
@elementwise
def uniform_soup(tensors: Sequence[Tensor]) -> Tensor:
    """sum_k theta_k / K (Wortsman et al. 2022, arXiv 2203.05482)."""
    return linear(tensors)


@merging.register(
    "wise_ft",
    summary="Line from the zero-shot or pretrained weights to the fine-tuned ones",
    paper="Wortsman et al. 2022, arXiv 2109.01903",
)
@elementwise
def wise_ft(
    tensors: Sequence[Tensor], base: Tensor, *, alpha: float = 0.5, extrapolate: bool = False
) -> Tensor:
    """(1 - alpha) base + alpha theta (Wortsman et al. 2022, arXiv 2109.01903); 0 gives the base."""
    alpha = check_share("alpha", alpha, extrapolate)
    return torch.lerp(base, only_other(tensors, "wise_ft"), alpha)


@merging.register(
    "fisher",
    summary="Mean of the weights, each entry weighted by its diagonal Fisher information",
    paper="Matena & Raffel 2022, arXiv 2111.09832",
)
@elementwise
def fisher_weighted(
    tensors: Sequence[Tensor],
    fisher: Sequence[Tensor],
    *,
    weight: PerModel = 1.0,
    floor: float = 1e-6,
) -> Tensor:
    """sum_k w_k F_k theta_k / sum_k w_k F_k, F_k at least `floor` (Matena & Raffel 2022, arXiv 2111.09832).

    `fisher` has the non-negative diagonal of each model (`diagonal_fisher`), shaped as the tensors.
    """
    weights = per_model("weight", weight, len(tensors))
    total: Tensor | None = None
    divisor: Tensor | None = None
    for each, tensor, information in zip(weights, tensors, fisher, strict=True):
        if bool((information < 0).any()):
            raise InputError("fisher", "has negative entries", "Give the squared gradients' mean.")
        scale = information.clamp(min=floor) * each
        total = scale * tensor if total is None else total.addcmul_(scale, tensor)
        divisor = scale if divisor is None else divisor + scale
    if total is None or divisor is None:
        raise InputError("method 'fisher'", "got no models", "It takes one or more.")
    return total / divisor


@merging.register("passthrough", summary="One model's tensors as they are, or scaled: for stacking layers")
@elementwise
def passthrough(tensors: Sequence[Tensor], *, scale: PerModel = 1.0) -> Tensor:
    """scale * theta of the only model."""
    if len(tensors) != 1:
        raise InputError("method 'passthrough'", f"got {len(tensors)} models", "It takes one a slice.")
    factor = per_model("scale", scale, 1)[0]
    tensor = at_least(tensors, 1, "passthrough")[0]
    return tensor.clone() if factor == 1 else tensor * factor
