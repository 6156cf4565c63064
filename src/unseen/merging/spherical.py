"""Means along the sphere: directions are averaged by angle, lengths apart from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import STRETCH, PerModel, after_a_look, at_least, check_share, only_other, per_model
from unseen.registry import merging

COLLINEAR = 0.9995
"""Cosine beyond which `slerp` takes the straight line, as mergekit does: the arc divides by a small sine."""


def _cosine(stretches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> float:
    """Of the base and the one other tensor, stretches of them summed in double precision; 0 when one is zero."""
    products = [0.0, 0.0, 0.0]
    for tensors, base in stretches:
        a, b = base.reshape(-1), only_other(tensors, "slerp").reshape(-1)
        for index, (left, right) in enumerate(((a, a), (b, b), (a, b))):
            products[index] += float(torch.dot(left, right))
    if min(products[:2]) < 1e-16:
        return 0.0
    return max(-1.0, min(1.0, products[2] / math.sqrt(products[0] * products[1])))


@merging.register("slerp", summary="Great circle from one model to another", paper="Shoemake 1985")
@after_a_look(_cosine)
def slerp(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    t: float = 0.5,
    extrapolate: bool = False,
    seen: float | None = None,
) -> Tensor:
    """[sin((1 - t) w) base + sin(t w) theta] / sin w, w the angle between the whole tensors; t = 0 is the base.

    Nearly (anti)parallel tensors are interpolated linearly. `seen` is cos w, where these are stretches of them.
    """
    t = check_share("t", t, extrapolate)
    other = only_other(tensors, "slerp")
    if seen is None:
        pairs = zip(base.reshape(-1).split(STRETCH), other.reshape(-1).split(STRETCH), strict=True)
        seen = _cosine(([theirs], ours) for ours, theirs in pairs)
    cosine = seen
    if abs(cosine) > COLLINEAR:
        return (1 - t) * base + t * other
    angle = math.acos(cosine)
    return (base * (math.sin((1 - t) * angle) / math.sin(angle))).add_(
        other, alpha=math.sin(t * angle) / math.sin(angle)
    )


@merging.register("nuslerp", summary="Great circle between two models or their task vectors, by weights")
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weight: PerModel = 1.0,
    flatten: bool = True,
    row_wise: bool = False,
) -> Tensor:
    """`slerp` at t = w_2 / (w_1 + w_2); with a base, between the task vectors.

    flatten   the angle is that of the whole tensors; else of the vectors along the last dimension, or along
              the first one when `row_wise` (mergekit's meaning of the word)
    """
    if len(tensors) != 2:
        raise InputError("method 'nuslerp'", f"got {len(tensors)} models beside the base", "It takes two.")
    weights = per_model("weight", weight, 2)
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    first, second = list(tensors) if base is None else [tensor - base for tensor in tensors]
    shape = first.shape
    if flatten or first.dim() < 2:
        first, second = first.reshape(1, -1), second.reshape(1, -1)
    elif row_wise:
        first, second = first.transpose(0, -1), second.transpose(0, -1)
    cosine = (_unit(first, 1e-7) * _unit(second, 1e-7)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine.abs() < 1e-8
    sine = sine.masked_fill(straight, 1)
    ratio_first = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)
    ratio_second = torch.where(straight, t, (t * angle).sin() / sine)
    result = ratio_first * first + ratio_second * second
    if row_wise and not flatten and len(shape) > 1:
        result = result.transpose(0, -1)
    result = result.reshape(shape)
    return result if base is None else result + base


@merging.register("multislerp", summary="Mean on the sphere in the tangent space of the mean direction")
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weight: PerModel = 1.0,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """exp_m(sum_k w_k log_m(theta_k / |theta_k|)) sum_k w_k |theta_k|, m the weighted mean direction.

    One step of the Karcher mean; with a base, of the task vectors. Unlike the exact logarithm, tangent vectors
    have the length of the projection, as in mergekit.
    """
    models = at_least(tensors, 1, "multislerp")
    if len(models) == 1:
        return models[0].clone()
    weights = per_model("weight", weight, len(models))
    if normalize_weights:
        total = sum(weights)
        if abs(total) < 1e-8:
            raise InputError("weight", "adds up to 0", "Give other weights.")
        weights = [each / total for each in weights]
    shape = models[0].shape
    flat = torch.stack([(m if base is None else m - base).reshape(-1) for m in models])
    w = flat.new_tensor(weights)[:, None]
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit = flat / (norms + eps)
    mean = (w * unit).sum(0)
    length = torch.linalg.vector_norm(mean)
    if length < eps:
        if len(models) > 2:
            raise InputError(
                "weight", "balances opposite directions to a mean of 0", "Give other weights or models."
            )
        result = (w * flat).sum(0)
    else:
        mean = mean / length
        tangent = (w * (unit - (unit @ mean)[:, None] * mean)).sum(0)
        size = torch.linalg.vector_norm(tangent) + eps
        result = (mean * size.cos() + tangent * (size.sin() / size)) * (w * norms).sum()
    result = result.reshape(shape)
    return result if base is None else result + base


@merging.register(
    "karcher", summary="Karcher (Riemannian) mean of the directions, scaled by the mean norm",
    paper="Karcher 1977; arXiv 2603.04972",
)  # fmt: skip
def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """argmin_u sum_k angle(u, theta_k)^2 by u <- exp_u(mean_k log_u(theta_k)), times the mean of |theta_k|.

    Tensors of norm 0 have no direction, but count for the norm.
    """
    models = at_least(tensors, 1, "karcher")
    shape = models[0].shape
    flat = torch.stack([m.reshape(-1) for m in models])
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    valid = norms[:, 0] > tol
    if not bool(valid.any()):
        return torch.zeros_like(models[0])
    unit = flat[valid] / norms[valid]
    mean = unit.mean(0)
    length = torch.linalg.vector_norm(mean)
    mean = unit[0] if length < tol else mean / length
    for _ in range(max_iter):
        cosine = (unit @ mean).clamp(-1, 1)
        angle = cosine.acos()
        scale = torch.where(angle < tol, 0, angle / angle.sin().clamp(min=1e-12))
        tangent = (scale[:, None] * (unit - cosine[:, None] * mean)).mean(0)
        size = torch.linalg.vector_norm(tangent)
        if size < tol:
            break
        mean = size.cos() * mean + size.sin() / size * tangent
        mean = mean / torch.linalg.vector_norm(mean)
    return (norms.mean() * mean).reshape(shape)


def _unit(x: Tensor, floor: float) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=floor)
