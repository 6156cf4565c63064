"""G-Vendi: how many different things the examples of a set would teach, by their gradients under a small model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unseen.curation.base import Pool
from unseen.curation.spaces import gradients_of
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import effective_number, vendi_score
from unseen.networks.example_gradients import cross_entropy
from unseen.networks.gradient_methods import ExampleLoss


def g_vendi(
    model: nn.Module,
    data: Pool | tuple[Any, ...],
    *,
    loss: ExampleLoss = cross_entropy,
    parameters: str | Sequence[str] = "*",
    dimension: int = 1024,
    seed: int = 0,
    q: float = 1.0,
) -> float:
    """Vendi score of the examples' gradients, projected to `dimension` numbers by `seed`: in [1, min(N, dimension)].

    model       the proxy: small, and not trained on these data
    loss        mean over an answer's tokens for language models: `token_cross_entropy`
    parameters  patterns of names whose gradients count
    q           order, see `vendi_score`; 1 is the paper's

    It grows with N and depends on proxy and seed: compare sets of one size, with one proxy and one seed. Raises
    InputError for fewer than two examples and for zero gradients, by number.
    Source: Jung et al. 2025, arXiv 2505.20161, section 2.
    """
    gradients = gradients_of(model, loss, parameters)
    return vendi_score(gradients.projected(Pool.of(data).examples, dimension, seed, unit=True), q=q)


def marginal_gain(base: Any, new: Any, *, q: float = 1.0) -> Tensor:
    """(M,) by how much the Vendi score of `base` (N, D) rises when one row of `new` (M, D) joins it, each by itself.

    Exact, by the eigenvalues of the smaller kernel with each new row. Below zero for an example like those that are
    there already. Raises InputError for rows of zeros and widths that differ.
    """
    base, new = (torch.as_tensor(rows).double() for rows in (base, new))
    if base.dim() != 2 or new.dim() != 2 or base.shape[1] != new.shape[1]:
        raise InputError(
            "base and new",
            f"have shapes {tuple(base.shape)} and {tuple(new.shape)}",
            "Give (N, D) and (M, D).",
        )
    before = vendi_score(base, q=q)
    lengths = new.norm(dim=1, keepdim=True)
    zero = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
    if zero:
        raise InputError("new", f"has rows of zeros ({', '.join(map(str, zero[:10]))})", "Leave them out.")
    base, new = base / base.norm(dim=1, keepdim=True), new / lengths
    count = len(base) + 1
    primal = base.shape[1] <= count
    known = base.T @ base if primal else base @ base.T
    scores = []
    for row in new:
        if primal:
            kernel = known + row.outer(row)
        else:
            beside = base @ row
            kernel = known.new_ones(count, count)
            kernel[:-1, :-1], kernel[-1, :-1], kernel[:-1, -1] = known, beside, beside
        values = torch.linalg.eigvalsh(kernel / count)
        scores.append(effective_number(values.where(values > 1e-15, 0), q) - before)
    return torch.tensor(scores, dtype=torch.float64)
