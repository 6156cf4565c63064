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
    if sparsifier in DRAWING:
        keep = torch.full_like(delta, density)
        if sparsifier == "magprune":
            keep = keep_by_rank(delta, density, epsilon)
        kept = delta * _draw(keep, generator)
        if rescale == "expectation":
            return kept / keep.where(keep > 0, 1)
    else:
        chosen = (
            largest(delta, max(int(density * delta.numel()), min(1, delta.numel())))
            if sparsifier == "magnitude"
            else below_outliers(delta, density, gamma)
        )
        kept = delta.masked_fill(~chosen, 0)
    return kept if rescale in ("none", "expectation") else kept * _norm_ratio(delta, kept, rescale)


def largest(values: Tensor, count: int) -> Tensor:
    """True for the `count` entries of largest magnitude; among equals, for the first."""
    flat = values.detach().reshape(-1)
    if count == 0 or count >= len(flat):
        return torch.full_like(values, count > 0, dtype=torch.bool)
    bound = _magnitude(flat, len(flat) - count)
    chosen = flat.abs() > bound
    missing = count - int(chosen.sum())
    chosen[(flat.abs() == bound).nonzero()[:missing, 0]] = True
    return chosen.view(values.shape)


def below_outliers(delta: Tensor, density: float, gamma: float) -> Tensor:
    """True for floor(density n) entries: the largest after floor(gamma n) at the top are left out.

    With gamma > 1 - density no small entry is removed, and fewer at the top, so that `density` holds.
    """
    if not 0 <= gamma <= 1:
        raise InputError("gamma", f"is {gamma}", "Give a share in [0, 1].")
    count = delta.numel()
    kept = int(density * count)
    top = min(int(gamma * count), count - kept)
    return largest(delta, kept + top) & ~largest(delta, top)


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


def _magnitude(flat: Tensor, rank: int) -> Tensor | float:
    """The magnitude that `rank` entries do not exceed."""
    if flat.device.type != "cpu":
        return flat.abs().kthvalue(rank + 1).values
    # numpy selects in place and in an eighth of the time of torch, which moves pairs of value and index
    magnitudes = flat.abs().to(torch.promote_types(flat.dtype, torch.float32)).numpy()
    magnitudes.partition(rank)
    return float(magnitudes[rank])


def _draw(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise InputError("generator", "is missing, and this sparsifier draws", "Give a torch.Generator.")
    uniform = torch.rand(probability.shape, generator=generator, device=generator.device)
    return (uniform.to(probability.device) < probability).to(probability.dtype)


def _norm_ratio(before: Tensor, after: Tensor, norm: str) -> Tensor | float:
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[norm]
    wanted, found = (torch.linalg.vector_norm(x, order, dtype=torch.float64) for x in (before, after))
    return float(wanted / found) if min(wanted, found) > 1e-7 else 1.0
