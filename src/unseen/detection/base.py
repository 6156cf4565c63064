"""The detector contract: how familiar is an input? Higher scores mean more familiar, always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Bank


class Detector(nn.Module):
    """Scores how familiar inputs are, from the outputs of a network (`Bank`).

    Subclasses store hyperparameters in `__init__`, keep what they learn as buffers, and define `fit(bank)`
    (in-distribution training outputs; returns self) and `score(bank)` (N float32, higher = more familiar).
    A score that reads `bank.logits` or `bank.head` sets `needs_logits`: features alone are not enough for it.
    `unseen.testing.check_detector` checks all this.
    """

    needs_logits: ClassVar[bool] = False

    def fit(self, bank: Bank) -> Self:
        """Learn from in-distribution outputs; detectors that learn nothing return themselves."""
        return self

    def score(self, bank: Bank) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define score(bank) -> Tensor")

    def keep(self, **buffers: Tensor) -> None:
        """Set (or replace) buffers."""
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the buffers of a fitted detector (`state_dict()` of another instance)."""
        self.keep(**state)
        return self

    def require_fitted(self) -> None:
        """Raise when a detector that learns something has learnt nothing yet."""
        if not self._buffers:
            raise InputError(f"detector {type(self).__name__}", "is not fitted", "Call fit(bank) first.")


def require_finite(features: Tensor, what: str) -> Tensor:
    """The features themselves; raises when some are NaN or infinite, naming how many and where.

    An exported graph cannot raise: there, they pass, and a score of NaN is below every threshold.
    """
    if torch.compiler.is_exporting():
        return features
    bad = ~torch.isfinite(features).all(-1)
    if bad.any():
        raise InputError(
            what,
            f"has NaN or infinite values in {int(bad.sum())} row(s), first in row {int(bad.nonzero()[0])}",
            "Check the network's outputs.",
        )
    return features
