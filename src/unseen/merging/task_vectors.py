"""Arithmetic on task vectors: one function, sparsifier x consensus x rescale; the published methods are presets."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.base import PerModel, elementwise, one_of, per_model
from unseen.merging.sparsify import DEFAULTS, SPARSIFIERS, sparsify
from unseen.registry import merging

CONSENSUS = ("none", "sum", "count", "unweighted")
STRETCH = 1 << 18
"""Entries whose signs are elected at a time: what that takes beside the task vectors stays in the processor's cache."""


@merging.register(
    "task_arithmetic",
    summary="Base plus the weighted sum of task vectors",
    paper="Ilharco et al. 2023, arXiv 2212.04089",
)
@merging.register(
    "ties",
    summary="Task vectors trimmed, signs elected on weighted ones, mean by agreeing weights (mergekit's rule)",
    paper="Yadav et al. 2023, arXiv 2306.01708",
    preset={"sparsifier": "magnitude", "consensus": "sum", "normalize": True},
)
@merging.register(
    "ties_paper",
    summary="Task vectors trimmed, signs elected on unweighted ones, mean by agreeing models (paper, peft)",
    paper="Yadav et al. 2023, arXiv 2306.01708",
    preset={"sparsifier": "magnitude", "consensus": "unweighted", "normalize": True},
)
@merging.register(
    "dare_linear",
    summary="Task arithmetic on randomly dropped and rescaled task vectors",
    paper="Yu et al. 2024, arXiv 2311.03099",
    preset={"sparsifier": "random", "rescale": "l1"},
)
@merging.register(
    "dare_ties",
    summary="Randomly dropped and rescaled task vectors with elected signs",
    paper="Yu et al. 2024, arXiv 2311.03099",
    preset={"sparsifier": "random", "rescale": "l1", "consensus": "sum"},
)
@merging.register(
    "della_linear",
    summary="Task arithmetic on task vectors dropped at random by the rank of magnitudes",
    paper="Deep et al. 2024, arXiv 2406.11617",
    preset={"sparsifier": "magprune", "rescale": "l1"},
)
@merging.register(
    "della",
    summary="Task vectors dropped at random by the rank of magnitudes, with elected signs",
    paper="Deep et al. 2024, arXiv 2406.11617",
    preset={"sparsifier": "magprune", "rescale": "l1", "consensus": "sum", "normalize": True},
)
@merging.register(
    "breadcrumbs",
    summary="Task arithmetic without the smallest and the very largest changes",
    paper="Davari & Belilovsky 2023, arXiv 2312.06795",
    preset={"sparsifier": "outliers"},
)
@merging.register(
    "breadcrumbs_ties",
    summary="Task vectors without the smallest and the very largest changes, with elected signs",
    paper="Davari & Belilovsky 2023, arXiv 2312.06795",
    preset={"sparsifier": "outliers", "consensus": "sum"},
)
@elementwise
def merge_task_vectors(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    generator: torch.Generator | None = None,
    weight: PerModel = 1.0,
    density: PerModel | None = None,
    gamma: PerModel | None = None,
    epsilon: PerModel | None = None,
    scaling: float = 1.0,
    normalize: bool = False,
    sparsifier: str = "none",
    consensus: str = "none",
    rescale: str = "none",
) -> Tensor:
    """base + scaling * C(S(theta_1 - base), ..., S(theta_K - base)), with S of `sparsify` and C the consensus.

    none        sum_k w_k d_k (task arithmetic, arXiv 2212.04089); `normalize` divides by sum_k w_k
    sum         only entries whose sign is that of sum_k w_k d_k; `normalize` divides by their weights' sum
    count       the same, the sign elected by sum_k sign(w_k d_k): each model has one vote
    unweighted  only entries whose sign is that of sum_k d_k; `normalize` divides by their number (TIES,
                algorithm 1; with weights as in peft)

    `sum` and `unweighted` agree when all weights are equal; else they differ much. `scaling` is the papers'
    lambda. The presets of DARE and DELLA restore the l1 norm of each task vector, as mergekit does;
    rescale="expectation" is the papers' division by the probability.
    """
    one_of("sparsifier", sparsifier, SPARSIFIERS)
    one_of("consensus", consensus, CONSENSUS)
    settings = _settings(sparsifier, len(tensors), density=density, gamma=gamma, epsilon=epsilon)
    weights = per_model("weight", weight, len(tensors))
    deltas = (
        sparsify(tensor - base, sparsifier, rescale=rescale, generator=generator, **setting)
        for tensor, setting in zip(tensors, settings, strict=True)
    )
    if not len(tensors):
        return base.clone()
    if consensus == "none":
        weighted, weight_sum = _sum(deltas, weights)
        return base + scaling * (weighted / weight_sum if normalize else weighted)
    kept = [delta.reshape(-1) for delta in deltas]
    merged = torch.empty_like(kept[0], dtype=functools.reduce(torch.promote_types, [d.dtype for d in kept]))
    for first in range(0, len(merged), STRETCH):
        stretch = slice(first, first + STRETCH)
        total, divisor = _agreeing_sum([delta[stretch] for delta in kept], weights, consensus)
        merged[stretch] = scaling * (total / divisor if normalize else total)
    return merged.view(base.shape).add_(base)


def _sum(deltas, weights: list[float]) -> tuple[Tensor | float, float]:
    total: Tensor | float = 0.0
    for weight, delta in zip(weights, deltas, strict=True):
        total = delta * weight if isinstance(total, float) else total.add_(delta, alpha=weight)
    divisor = sum(weights)
    return total, divisor if abs(divisor) > 1e-8 else 1.0


def _agreeing_sum(deltas: list[Tensor], weights: list[float], consensus: str) -> tuple[Tensor, Tensor]:
    """Sum of w_k d_k over the models that agree with the elected sign, and what it is divided by."""
    votes = torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        if consensus == "unweighted":
            votes += delta
        elif consensus == "sum":
            votes.add_(delta, alpha=weight)
        else:
            votes += (delta * weight).sign()
    positive = votes >= 0  # a tie counts as positive, as in the papers' code
    total, divisor = torch.zeros_like(votes), torch.zeros_like(votes)
    for weight, delta in zip(weights, deltas, strict=True):
        voter = delta if consensus == "unweighted" else delta * weight
        agrees = torch.where(positive, voter > 0, voter < 0).to(delta.dtype)
        total.addcmul_(delta, agrees, value=weight)
        divisor.add_(agrees, alpha=1.0 if consensus == "unweighted" else weight)
    return total, divisor.where(divisor != 0, 1)


def _settings(sparsifier: str, count: int, **given: PerModel | None) -> list[dict[str, float]]:
    """The sparsifier's options, one mapping a model."""
    for name, value in given.items():
        if value is not None and name not in SPARSIFIERS[sparsifier]:
            takes = " and ".join(SPARSIFIERS[sparsifier]) or "no options"
            raise InputError(name, f"has no effect on sparsifier {sparsifier!r}", f"It takes {takes}.")
    columns = {name: _filled(name, given[name], count) for name in SPARSIFIERS[sparsifier]}
    return [{name: column[index] for name, column in columns.items()} for index in range(count)]


def _filled(name: str, value: PerModel | None, count: int) -> list[float]:
    """One number a model, the default where none is given."""
    numbers = list(value) if isinstance(value, Sequence) else [value] * count
    return per_model(name, [DEFAULTS[name] if each is None else each for each in numbers], count)
