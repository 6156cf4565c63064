"""Which entries of a task vector are kept, and how what is kept is scaled up for what is not."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import one_of

SPARSIFIERS = {
    "none": (),
    "magnitude": ("density",),
    "random": ("density",),
    "outliers": ("density", "gamma"),
    "magprune": ("density", "epsilon"),
}
"""Each sparsifier's options."""
DRAWING = ("random", "magprune")
DEFAULTS = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}
RESCALES = ("none", "l1", "l2", "linf", "expectation")


def sparsify(
    delta: Tensor,
    sparsifier: str,
    *,
    density: float = 1.0,
    gamma: float = 0.01,
    epsilon: float = 0.15,
    rescale: str = "none",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`delta` with a share of about `density` in [0, 1] of its entries kept, the others zero.

    none       all
    magnitude  the largest ("trim" of TIES, Yadav et al. 2023, arXiv 2306.01708)
    random     each with probability `density` (DARE, Yu et al. 2024, arXiv 2311.03099)
    outliers   the largest but for the share `gamma` at the very top (Model Breadcrumbs, arXiv 2312.06795)
    magprune   at random, the probability growing with the rank of the magnitude in its row from
               density - epsilon to density + epsilon (DELLA, Deep et al. 2024, arXiv 2406.11617)

    `rescale` makes up for what was removed: `l1`, `l2` and `linf` restore that norm of `delta`; `expectation`
    divides each kept entry by its probability to be kept, as the papers of DARE and DELLA do.
    """
    one_of("sparsifier", sparsifier, SPARSIFIERS)
    one_of("rescale", rescale, RESCALES)
    if not 0 <= density <= 1:
        raise InputError("density", f"is {density}", "Give a share in [0, 1].")
    if sparsifier == "none" or density == 1:
        return delta
    if density == 0:
        return torch.zeros_like(delta)
    if sparsifier == "magnitude":
        keep = keep_largest(delta, density)
    elif sparsifier == "outliers":
        keep = keep_below_outliers(delta, density, gamma)
    else:
        keep = torch.full_like(delta, density)
        if sparsifier == "magprune":
            keep = keep_by_rank(delta, density, epsilon)
    kept = delta * (_draw(keep, generator) if sparsifier in DRAWING else keep)
    if rescale == "expectation":
        return kept / keep.where(keep > 0, 1)
    return kept if rescale == "none" else kept * _norm_ratio(delta, kept, rescale)


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """1 for the floor(density n) entries (at least one) largest in magnitude, else 0."""
    return _mark(delta, _largest(delta, max(int(density * delta.numel()), min(1, delta.numel()))))


def keep_below_outliers(delta: Tensor, density: float, gamma: float) -> Tensor:
    """1 for floor(density n) entries: the largest after floor(gamma n) at the top are left out, else 0.

    With gamma > 1 - density no small entry is removed, and fewer at the top, so that `density` holds.
    """
    if not 0 <= gamma <= 1:
        raise InputError("gamma", f"is {gamma}", "Give a share in [0, 1].")
    count = delta.numel()
    kept = int(density * count)
    top = min(int(gamma * count), count - kept)
    mask = _mark(delta, _largest(delta, kept + top))
    mask.view(-1)[_largest(delta, top)] = 0
    return mask


def keep_by_rank(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Probabilities from density - epsilon (smallest of a row) to density + epsilon (largest)."""
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise InputError(
            "epsilon", f"is {epsilon} at density {density}", "Both density - epsilon and density + epsilon "
            "must lie in (0, 1)."
        )  # fmt: skip
    rows = delta.reshape(delta.shape[0], -1) if delta.dim() > 1 else delta.reshape(1, -1)
    if rows.shape[1] == 1:
        return torch.full_like(delta, density)
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype) / (rows.shape[1] - 1)
    return (density - epsilon + 2 * epsilon * ranks).reshape(delta.shape)


def _largest(delta: Tensor, count: int) -> Tensor:
    return delta.abs().reshape(-1).topk(count, sorted=False).indices


def _mark(delta: Tensor, indices: Tensor) -> Tensor:
    mask = torch.zeros_like(delta, memory_format=torch.contiguous_format)
    mask.view(-1)[indices] = 1
    return mask


def _draw(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise InputError("generator", "is missing, and this sparsifier draws", "Give a torch.Generator.")
    uniform = torch.rand(probability.shape, generator=generator, device=generator.device)
    return (uniform.to(probability.device) < probability).to(probability.dtype)


def _norm_ratio(before: Tensor, after: Tensor, norm: str) -> Tensor | float:
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[norm]
    wanted, found = (torch.linalg.vector_norm(x, order, dtype=torch.float64) for x in (before, after))
    return float(wanted / found) if min(wanted, found) > 1e-7 else 1.0
