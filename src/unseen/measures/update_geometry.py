"""What low-rank updates do to the weights and features they change: angles, effective rank, drift."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.low_rank import low_rank_updates

_SMALLEST = 1e-12


def mean_row_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean |cos| over all pairs of a row of a (..., m, d) and a row of b (..., n, d); rows of zeros count as 0.

    Two random directions in d dimensions have about sqrt(2 / (pi d)).
    """
    a, b = (nn.functional.normalize(rows, dim=-1, eps=_SMALLEST) for rows in (a, b))
    return (a @ b.mT).abs().mean((-2, -1))


def effective_rank(matrix: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of a matrix (..., m, n): 1 to min(m, n); 0 for zeros.

    Source: Roy & Vetterli 2007, "The effective rank", definition 1.
    """
    values = torch.linalg.svdvals(matrix)
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp(min=_SMALLEST)
    rank = torch.exp(-(shares * shares.clamp(min=_SMALLEST).log()).sum(-1))
    return torch.where(total.squeeze(-1) > 0, rank, 0.0)


@torch.no_grad()
def update_geometry(model: nn.Module) -> pd.DataFrame:
    """A row for each updated matrix of a model with low-rank updates.

    Columns: name of the weight, part (of a fused layer), preserve_cosine (mean |cos| between rows of the frozen
    matrix and of the updates), diversify_cosine (between rows of two members of the group; NaN without a second
    one), effective_rank of the whole update, relative_size (its Frobenius norm over that of the frozen matrix).
    Raises `InputError` when the model has no updates.
    Source: the orthogonality that Hu et al. 2024 (arXiv 2407.15085) penalise, section 3.3.
    """
    rows = []
    for name, frozen, update in low_rank_updates(model):
        weight = update.layout.matrices(frozen).double()
        members, total = update.updates().double(), update.total().double()
        first, second = torch.triu_indices(update.groups, update.groups, 1)
        preserve = mean_row_cosine(weight.unsqueeze(1), members).mean(1)
        diversify = mean_row_cosine(members[:, first], members[:, second]).mean(1)
        ranks = effective_rank(total)
        sizes = total.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
        for index, part in enumerate(update.layout.parts):
            values = (preserve[index], diversify[index], ranks[index], sizes[index])
            rows.append((name, part, *map(float, values)))
    if not rows:
        raise InputError("model", "has no low-rank updates", "Look at it before merging them.")
    return pd.DataFrame(
        rows,
        columns=["name", "part", "preserve_cosine", "diversify_cosine", "effective_rank", "relative_size"],
    ).set_index(["name", "part"])


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Similarity in [0, 1] of two sets of features (N, D) and (N, E) of the same N inputs; 1 for rotated, moved and
    evenly scaled copies. One minus it is how far training has moved the features.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 6 with linear kernels.
    """
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b):
        raise InputError(
            "features",
            f"have shapes {tuple(a.shape)} and {tuple(b.shape)}",
            "Give two (N, D) of the same inputs.",
        )
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    if scale == 0:
        raise InputError("features", "are the same for all inputs", "Give features that vary.")
    return float((a.T @ b).square().sum() / scale)
