"""Loss of the worst of several groups of examples, which may overlap: right and wrong ones of earlier models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.objectives.group_dro import reweighted
from unseen.objectives.whole_data import WholeData, outputs_of
from unseen.shifts import Batch

KINDS = ("hardmax", "groupdro")


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(...,) squared error, averaged over the outputs of an example; both (..., K), or targets (...,)."""
    targets = targets if targets.dim() == outputs.dim() else targets.unsqueeze(-1)
    return (outputs - targets).square().mean(-1)


def is_right(outputs: Tensor, targets: Tensor, threshold: float | None = None) -> Tensor:
    """(B,) whether an output (B, C) is right: the largest one the label's, or a squared error up to `threshold`."""
    if threshold is not None:
        return squared_errors(outputs, targets) <= threshold
    labels = targets if targets.dim() == 1 else targets.argmax(-1)
    return outputs.argmax(-1) == labels


def right_and_wrong(right: Tensor, domain: Tensor | None = None) -> Tensor:
    """(2, N) members of the groups of right and of wrong examples (N,), or (2 D, N), crossed with the domain."""
    groups = torch.stack([right, ~right])
    if domain is None:
        return groups
    return torch.cat([groups & (domain == index) for index in domain.unique()])


def correctness_groups(
    model: Callable[[Any], Tensor], data: Any, *, threshold: float | None = None, by_domain: bool = False
) -> Tensor:
    """(G, N) members of the groups that a model makes of data: what it gets right, what it gets wrong.

    data       see `WholeData.of`
    threshold  for regression: the squared error up to which an output is right; None for classification
    by_domain  cross them with the domain
    """
    data = WholeData.of(data)
    outputs = outputs_of(model, data)
    batches = [(batch.y.cpu(), batch.domain.cpu()) for batch in data.in_order()]
    targets, domain = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return right_and_wrong(is_right(outputs, targets, threshold), domain if by_domain else None)


class WorstGroup(nn.Module):
    """The mean loss of the worst of G groups of N examples (Zhang et al. 2022, arXiv 2203.15516, section 5).

    groups     (G, N) bool, members by the position of the example; groups may overlap, none may be empty
    kind       "hardmax": the largest mean of those present in the batch, the paper's on all examples at once;
               "groupdro": means weighted by exponentiated ascent (Sagawa et al. 2020), for small batches, where a
               largest mean is mostly one of few examples
    step_size  of the ascent
    """

    groups: Tensor
    weights: Tensor

    def __init__(
        self, groups: Tensor, kind: Literal["hardmax", "groupdro"] = "hardmax", step_size: float = 0.01
    ):
        super().__init__()
        check_kind(kind)
        if groups.dim() != 2 or not groups.bool().any(1).all():
            raise InputError("groups", "have an empty one or are not (G, N)", "Give members of every group.")
        self.kind, self.step_size = kind, step_size
        self.register_buffer("groups", groups.bool())
        self.register_buffer("weights", torch.full((len(groups),), 1 / len(groups)))

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        """The loss of examples' losses (B,), by their `batch.ids`."""
        member = self.groups[:, batch.ids].to(losses.dtype)
        counts = member.sum(1)
        present, means = counts > 0, member @ losses / counts.clamp(min=1)
        if self.kind == "hardmax":
            return means.masked_fill(~present, -torch.inf).max()
        if not batch.repeat:
            self.weights.copy_(reweighted(self.weights, means.detach(), self.step_size))
        weights = self.weights * present
        return (weights / weights.sum() * means).sum()


def check_kind(kind: str) -> None:
    """Raise `InputError` for a kind of worst-group loss that there is not."""
    if kind not in KINDS:
        raise InputError(f"discovery {kind!r}", "is not known", nearest(kind, KINDS))
