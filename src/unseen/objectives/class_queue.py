"""The latest features of every class, for objectives that model where the classes end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError


class ClassQueue(nn.Module):
    """The last `size` features of each class, in buffers: `values` (C, size, D) and `seen` (C,), examples so far."""

    values: Tensor
    seen: Tensor

    def __init__(self, classes: int, size: int, features: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(classes, size, features))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (B, D) of labels (B,), in their order; the oldest of a full class go.

        Raises `InputError` for a batch larger than the queue: which of its examples stay would not be decided.
        """
        classes, size, _ = self.values.shape
        if len(labels) > size:
            raise InputError(
                "queue", f"holds {size} of each class", f"Give at least the batch, {len(labels)}."
            )
        member = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).long()
        earlier = ((member.cumsum(0) - 1) * member).sum(
            1
        )  # examples of the same class before it in the batch
        place = ((self.seen * member).sum(1) + earlier) % size
        self.values[labels, place] = features.to(self.values.dtype)
        self.seen += member.sum(0)

    @property
    def held(self) -> Tensor:
        """(C,) number of features that the queue holds of each class."""
        return self.seen.clamp(max=self.values.shape[1])

    @property
    def filled(self) -> Tensor:
        """(C, size) 1.0 where a place holds a feature, else 0.0."""
        places = torch.arange(self.values.shape[1], device=self.seen.device)
        return (places < self.held.unsqueeze(1)).to(self.values.dtype)
