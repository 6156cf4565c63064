"""Labels and soft targets in one shape."""

from __future__ import annotations

import torch
from torch import Tensor


def class_probabilities(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B, C) targets, from labels (B,) as well as from soft targets."""
    if targets.is_floating_point():
        return targets.to(dtype)
    return (targets.unsqueeze(1) == torch.arange(classes, device=targets.device)).to(dtype)


def likeliest_class(targets: Tensor) -> Tensor:
    """(B,) int64 labels, of soft targets (B, C) the most likely class."""
    return targets.argmax(1) if targets.is_floating_point() else targets
