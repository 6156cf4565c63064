"""Sinkhorn's algorithm: share examples out among prototypes so that every prototype gets as much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unseen.errors import InputError


@torch.no_grad()
def sinkhorn(scores: Tensor, eps: float = 0.05, iters: int = 3, *, log_domain: bool = True) -> Tensor:
    """Shares (..., B, P) that sum to one for each example and, the closer the more rounds, to B / P for each column.

    scores      (..., B, P) float, higher is better; single precision at least is computed in
    eps         entropic regularisation: exp(scores / eps) is scaled by rows and columns (Cuturi 2013)
    iters       rounds; the columns are scaled first, the examples last
    log_domain  False multiplies instead: a third faster, but exp(scores / eps) must be finite and above zero
    Raises InputError for scores that are not finite and for a transport that overflows. No gradient.
    """
    if scores.dim() < 2 or 0 in scores.shape:
        raise InputError("scores", f"have shape {tuple(scores.shape)}", "Give (..., examples, prototypes).")
    if not eps > 0:
        raise InputError("eps", f"is {eps}", "Give a positive number, such as 0.05.")
    if iters < 1:
        raise InputError("iters", f"is {iters}", "Give a whole number from 1.")
    if not torch.isfinite(scores).all():
        raise InputError("scores", "have NaN or infinite values", "Check the features and prototypes.")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    logs = scores / eps
    if not log_domain:
        return _multiplied(logs.exp(), iters)
    examples, prototypes = scores.shape[-2:]
    for _ in range(iters):
        logs = logs - logs.logsumexp(-2, keepdim=True) + math.log(examples / prototypes)
        logs = logs - logs.logsumexp(-1, keepdim=True)
    return logs.exp()


def _multiplied(shares: Tensor, iters: int) -> Tensor:
    examples, prototypes = shares.shape[-2:]
    for _ in range(iters):
        shares = shares / shares.sum(-2, keepdim=True) * (examples / prototypes)
        shares = shares / shares.sum(-1, keepdim=True)
    if not torch.isfinite(shares).all():
        raise InputError("transport", "has NaN or infinite shares", "Take log_domain=True, or a larger eps.")
    return shares
