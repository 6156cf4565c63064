"""Training and evaluation mode of a network that someone else uses, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards every part is in the mode that it was in, also where parts differ (`train()` would set them all)."""
    modes = {part: part.training for part in network.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the former modes afterwards: no dropout, and examples do not depend on
    each other."""
    with modes_kept(network):
        network.eval()
        yield
