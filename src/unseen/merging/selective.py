"""Methods that decide entry by entry, row by row or tensor by tensor how far to leave the base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import at_least, elementwise, only_other
from unseen.merging.sparsify import largest
from unseen.registry import merging


@merging.register(
    "nearswap",
    summary="Takes the other model's entries where the two are near",
    paper="alchemonaut 2024, QuartetAnemoi-70B-t0.0001",
)
@elementwise
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float = 1e-3) -> Tensor:
    """base + c (theta - base), c = min(1, t / |theta - base|): every entry moves by at most t >= 0."""
    if t < 0:
        raise InputError("t", f"is {t}", "Give the largest move of an entry, from 0.")
    difference = only_other(tensors, "nearswap") - base
    return base + difference * (t / difference.abs().clamp(min=1e-6)).clamp(0, 1)


@merging.register(
    "model_stock",
    summary="Line from the base to the mean, as far as the angle between task vectors says",
    paper="Jang et al. 2024, arXiv 2403.19522",
)
def model_stock(tensors: Sequence[Tensor], base: Tensor, *, filter_wise: bool = False) -> Tensor:
    """t mean_k theta_k + (1 - t) base, t = K cos w / (1 + (K - 1) cos w) (Jang et al. 2024, arXiv 2403.19522).

    cos w is the mean over pairs of the cosine between task vectors of the tensor, or of each row when
    `filter_wise`. Task vectors that balance out leave the base as it is.
    """
    models = at_least(tensors, 2, "model_stock")
    shape, count = base.shape, len(models)
    rows = (base.shape[0], -1) if filter_wise and base.dim() > 1 else (1, -1)
    start = base.reshape(rows)
    offsets = [m.reshape(rows) - start for m in models]
    norms = [torch.linalg.vector_norm(offset, dim=-1) for offset in offsets]
    cosines = [
        ((offsets[i] * offsets[j]).sum(-1) / (norms[i] * norms[j]).clamp(min=1e-6)).clamp(-1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = torch.stack(cosines).mean(0)[:, None]
    divisor = 1 + (count - 1) * cosine
    share = torch.where(divisor.abs() < 1e-6, 0, count * cosine / divisor)
    mean = torch.stack(offsets).mean(0)
    return (start + share * mean).reshape(shape)


@merging.register(
    "sce",
    summary="Task vectors where they vary most, weighted by their energy, with elected signs",
    paper="Wan et al. 2024 (FuseChat), arXiv 2408.07990",
)
def sce(tensors: Sequence[Tensor], base: Tensor, *, select_topk: float = 1.0) -> Tensor:
    """Select, calculate, erase (Wan et al. 2024, arXiv 2408.07990): base + sum_k w_k d_k m_k / sum_k w_k m_k.

    Select: only the share `select_topk` in [0, 1] of (varying) entries whose variance over the models is
    largest. Calculate: w_k is the mean square of d_k, divided by their sum. Erase: m_k is 1 where the sign of
    d_k is that of sum_k d_k.
    """
    if not 0 <= select_topk <= 1:
        raise InputError("select_topk", f"is {select_topk}", "Give a share in [0, 1].")
    deltas = torch.stack([tensor - base for tensor in at_least(tensors, 1, "sce")])
    if select_topk < 1:
        variance = deltas.var(0, unbiased=False)
        count = int(int(variance.count_nonzero()) * select_topk)
        deltas *= largest(variance, count)
    energy = deltas.square().reshape(len(deltas), -1).mean(1)
    energy = (
        energy / energy.sum() if float(energy.sum()) >= 1e-6 else torch.full_like(energy, 1 / len(energy))
    )
    positive = deltas.sum(0) >= 0
    agrees = torch.where(positive, deltas > 0, deltas < 0)
    weights = energy.reshape(-1, *[1] * base.dim()) * agrees
    return base + (weights * deltas).sum(0) / weights.sum(0).clamp(min=1e-6)


@merging.register(
    "ram",
    summary="Changes of one model are added, changes shared by several averaged",
    paper="Reinforced Agent Merging 2026, arXiv 2601.13572",
)
@merging.register(
    "ramplus_tl",
    summary="The same, changes of one model amplified by how many are shared, tensor by tensor",
    paper="Reinforced Agent Merging 2026, arXiv 2601.13572",
    preset={"r": 0.1},
)
def ram(
    tensors: Sequence[Tensor], base: Tensor, *, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.2
) -> Tensor:
    """base + sum_k d_k (lambda_k where only model k changed, else 1 / number of models that changed).

    An entry is changed when |d_k| > epsilon; lambda_k = 1 + r min(alpha, shared_k / alone_k), with the numbers
    of entries that model k changed with others and alone. r = 0 is RAM, else RAM+.
    """
    models = at_least(tensors, 1, "ram")
    counts = torch.zeros_like(base)
    for model in models:
        counts += (model - base).abs() > epsilon
    total = torch.zeros_like(base)
    for model in models:
        delta = model - base
        changed = delta.abs() > epsilon
        alone = changed & (counts == 1)
        lonely = int(alone.sum())
        ratio = (int(changed.sum()) - lonely) / max(lonely, epsilon)
        scale = torch.where(alone, 1 + r * min(alpha, ratio), 1 / counts.clamp(min=1))
        total += delta * changed * scale
    return base + total


@merging.register(
    "arcee_fusion",
    summary="Takes the other model's entries whose importance stands out",
    paper="arcee.ai 2025, mergekit 0.1",
)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """theta where importance >= median + 1.5 (Q3 - Q1) of the tensor, else the base.

    Importance of an entry: |theta - base| times KL(softmax(theta) || softmax(base)) of its row. Quantiles are
    exact (mergekit samples a million entries of larger tensors).
    """
    other = only_other(tensors, "arcee_fusion")
    rows = base.shape or (1,)
    p, q = (x.reshape(rows).softmax(-1) + 1e-8 for x in (other, base))
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = ((other - base).abs().reshape(rows) * divergence).reshape(base.shape)
    lower, median, upper = (_order_statistic(importance, share) for share in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (upper - lower), other, base)


def _order_statistic(x: Tensor, share: float) -> Tensor:
    return x.reshape(-1).kthvalue(int(share * (x.numel() - 1)) + 1).values
