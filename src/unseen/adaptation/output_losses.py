"""What can be said about predictions without labels: entropies, agreement, information. Rows are examples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_entropy(logits: Tensor) -> Tensor:
    """(B,) entropy of softmax(logits) in nats, for logits (B, C)."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) cross-entropy of softmax(logits) under softmax(targets); both (B, C)."""
    return -(targets.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def symmetric_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """(B,) mean of the two cross-entropies between softmax(first) and softmax(second)."""
    return (soft_cross_entropy(first, second) + soft_cross_entropy(second, first)) / 2


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean of the rows' softmax, a number; in log space (Zhang et al. 2022)."""
    mean = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(mean.exp() * mean.clamp(min=torch.finfo(mean.dtype).min)).sum()


def information(logits: Tensor) -> Tensor:
    """Mutual information of input and prediction in nats: marginal entropy minus mean entropy, a number."""
    return marginal_entropy(logits) - softmax_entropy(logits).mean()


def soft_likelihood_ratio(logits: Tensor, clip: float = 0.99) -> Tensor:
    """(B,) negative expected log odds, - sum_c p_c log(p_c / (1 - p_c)), with p clipped at `clip`.

    Marsden et al. 2024, arXiv 2306.00650: its gradient does not vanish for sure predictions.
    """
    p = logits.softmax(-1).clamp(max=clip)
    return -(p * (p / (1 - p) + 1e-5).log()).sum(-1)


def unit_range(values: Tensor) -> Tensor:
    """Values (B,) shifted and scaled to [0, 1]; zeros where all are the same."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread.clamp(min=torch.finfo(values.dtype).tiny)
