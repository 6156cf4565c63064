"""Since when a model knows its training samples by heart, from their losses at checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError


class MemorizationTracker:
    """Losses of N training samples, checkpoint by checkpoint, and the step since when each is memorized.

    eps    highest loss (nats a token) of a memorized sample, above 0
    delta  how far its loss may be from that at the last checkpoint, from 0

    A sample is memorized since the first step from which both hold at every later checkpoint: a later relapse moves
    it, so ask after the last checkpoint. Source: arXiv 2506.21551, section 3.
    """

    def __init__(self, eps: float, delta: float):
        if not 0 < eps < math.inf:
            raise InputError("eps", f"is {eps}", "Give a loss above 0.")
        if not delta >= 0:
            raise InputError("delta", f"is {delta}", "Give a difference of losses from 0.")
        self.eps, self.delta = eps, delta
        self.steps: list[int] = []
        self._losses: list[Tensor] = []

    def observe(self, step: int, losses: Any) -> None:
        """Losses (N,) at a checkpoint, after all steps seen so far and of the same samples in the same order."""
        losses = torch.as_tensor(losses).detach().to("cpu", torch.float64)
        if losses.dim() != 1 or len(losses) == 0 or not bool(torch.isfinite(losses).all()):
            raise InputError(
                "losses", f"of shape {tuple(losses.shape)} are none", "Give (N,) finite numbers."
            )
        if self._losses and len(losses) != len(self._losses[0]):
            raise InputError("losses", f"are {len(losses)}", f"Give {len(self._losses[0])} as before.")
        if step < 0 or (self.steps and step <= self.steps[-1]):
            raise InputError(
                "step",
                f"is {step} after {self.steps[-1] if self.steps else 'none'}",
                "Give steps from 0, in order.",
            )
        self.steps.append(step)
        self._losses.append(losses)

    @property
    def losses(self) -> Tensor:
        """All losses, (checkpoints, N) float64; InputError before the first."""
        if not self._losses:
            raise InputError("memorization", "has seen no checkpoint", "Call observe first.")
        return torch.stack(self._losses)

    def since(self) -> Tensor:
        """Step t* of every sample, (N,) int64; -1 where it is not memorized at the last checkpoint."""
        losses = self.losses
        low = (losses <= self.eps) & ((losses - losses[-1]).abs() <= self.delta)
        lasting = low.flip(0).long().cumprod(0).sum(0)  # checkpoints at the end, without a break
        first = (len(self.steps) - lasting).clamp(max=len(self.steps) - 1)
        return torch.where(lasting > 0, torch.tensor(self.steps)[first], -1)

    def groups(self) -> dict[int, Tensor]:
        """Step -> numbers of the samples memorized since then, in order; samples never memorized are in none."""
        since = self.since()
        return {step: (since == step).nonzero()[:, 0] for step in since.unique().tolist() if step >= 0}
