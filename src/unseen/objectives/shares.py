"""How much each example counts in the statistics of its domain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DomainRows:
    """Weights of examples in each domain's mean (D, B), and of domains in the mean over present ones (D,)."""

    domains: Tensor
    share: Tensor
    present: Tensor

    @classmethod
    def of(cls, domain: Tensor, domains: int, dtype: torch.dtype) -> DomainRows:
        member = (domain == torch.arange(domains, device=domain.device).unsqueeze(1)).to(dtype)
        counts = member.sum(1)
        present = counts.clamp(max=1)
        rows = member / counts.clamp(min=1).unsqueeze(1)
        return cls(rows, present / present.sum().clamp(min=1), present)

    @property
    def all(self) -> Tensor:
        """(D + 1, B), the pooled mean last."""
        return torch.cat([self.domains, (self.share @ self.domains).unsqueeze(0)])


def example_shares(rows: Tensor, weight: Tensor | None) -> Tensor:
    """(K, B) weights of examples that sum to one in each row; zero for rows without any."""
    if weight is None:
        return rows
    weighted = rows * weight
    return weighted / weighted.sum(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


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
    shares = example_shares(rows.domains, weight)
    return shares, (shares.sum(1) > 0).to(dtype)


def unbiased_factor(shares: Tensor) -> Tensor:
    """n / (n - 1) for a mean over n equal shares (..., B); with weights 1 / (1 - sum of squared shares).

    It turns a mean of squared deviations into an unbiased variance. One where at most one example counts.
    """
    rest = 1 - shares.square().sum(-1)
    return torch.where(rest > 1e-6, 1 / rest.clamp(min=1e-6), torch.ones_like(rest))
