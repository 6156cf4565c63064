"""How much each example counts in the statistics of its domain."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.objectives.head_statistics import DomainRows


def domain_shares(
    domain: Tensor, domains: int, weight: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Shares (D, B) of examples in the mean over each domain, and `present` (D,), 1.0 or 0.0.

    A row sums to one, or to zero for a domain without examples (or whose weights are all zero, which then
    does not count as present). domain (B,) in [0, domains); weight (B,) from 0, or None for equal shares.
    """
    rows = DomainRows.of(domain, domains, dtype)
    if weight is None:
        return rows.domains, rows.present
    weighted = rows.domains * weight
    total = weighted.sum(1, keepdim=True)
    shares = weighted / torch.where(total > 0, total, torch.ones_like(total))
    return shares, (total > 0).squeeze(1).to(dtype)


def unbiased_factor(shares: Tensor) -> Tensor:
    """n / (n - 1) for a mean over n equal shares (..., B); with weights 1 / (1 - sum of squared shares).

    It turns a mean of squared deviations into an unbiased variance. One where at most one example counts.
    """
    rest = 1 - shares.square().sum(-1)
    return torch.where(rest > 1e-6, 1 / rest.clamp(min=1e-6), torch.ones_like(rest))
