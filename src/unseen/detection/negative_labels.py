"""NegLabel: the probability that a class name takes from words that are far from all class names."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError


def negative_label_score(
    known: Tensor, negative: Tensor, scale: float, *, groups: int = 100, seed: int = 0
) -> Tensor:
    """(N,) share of the known classes in softmax(scale * cosines), mean over groups of negatives; in [0, 1].

    known     (N, K) cosines to the K class names
    negative  (N, M) cosines to M negative names; shuffled by `seed` and cut into `groups` of M // groups, the
              rest is left out: in one softmax over thousands of names every share would be near 0 or 1
    Jiang et al. 2024, arXiv 2403.20078, equations 6 and 8. Raises for fewer negatives than groups.
    """
    count = negative.shape[1]
    if groups < 1 or count < groups:
        raise InputError(
            "groups", f"are {groups} for {count} negative name(s)", "Give from 1 to the number of negatives."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(negative.device)
    parts = (scale * negative.float())[:, order[: count - count % groups]].unflatten(1, (groups, -1))
    inside = torch.logsumexp(scale * known.float(), 1, keepdim=True)
    return torch.sigmoid(inside - torch.logsumexp(parts, 2)).mean(1)
