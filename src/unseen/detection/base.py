"""The detector contract: how familiar is an input? Higher scores mean more familiar, always."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.networks.bank import BLOCK


class Detector(nn.Module):
    """Scores how familiar inputs are, from the outputs of a network (`Bank`).

    Subclasses store hyperparameters in `__init__`, keep what they learn as buffers, and define `fit(bank)`
    (in-distribution training outputs; returns self) and `score(bank)` (N float32, higher = more familiar).
    A score that reads `bank.logits` or `bank.head` sets `needs_logits`: features alone are not enough for it.
    One that needs more than features and logits defines `observe`. `unseen.testing.check_detector` checks all this.
    Large banks are scored block by block, so that of a memory-mapped one (`Bank.open`) little is in memory.
    """

    needs_logits: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "score" in vars(cls):
            cls.score = _by_blocks(cls.score)  # type: ignore[assignment, method-assign]

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to keep in `bank.layers` of a batch of B finished inputs, during the one pass over the data.

        layers  outputs of the network's layers for this batch (see `unseen.networks.taps`)
        Returns name -> (B, ...); the score of an input must not depend on the rest of its batch. Raises
        `InputError` for a network or inputs that the method cannot work with.
        """
        return {}

    @property
    def observes(self) -> bool:
        """Whether features and logits are not enough: its banks must be computed with it as an observer."""
        return type(self).observe is not Detector.observe

    def fit(self, bank: Bank) -> Self:
        """Learn from in-distribution outputs; detectors that learn nothing return themselves."""
        return self

    def score(self, bank: Bank) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define score(bank) -> Tensor")

    def keep(self, bank: Bank | None = None, /, **buffers: Tensor) -> None:
        """Set (or replace) buffers; with the bank that they were learnt from, `require_fitted` knows others."""
        if bank is not None:
            buffers["learnt_from"] = _origin(bank).to(bank.features.device)
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())

    def seen(self, bank: Bank, name: str) -> Tensor:
        """What `observe` kept under a name, float32; raises when the bank was computed without this detector."""
        if name not in bank.layers:
            raise InputError(
                "bank",
                f"lacks {name!r}, which {type(self).__name__} keeps of a pass of the network",
                "Compute it with the detector as an observer: Predictor.outputs(inputs, observers=[detector]).",
            )
        return require_finite(bank.layers[name].flatten(1), name).view(bank.layers[name].shape).float()

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the buffers of a fitted detector (`state_dict()` of another instance)."""
        self.keep(**state)
        return self

    def require_fitted(self, bank: Bank | None = None) -> None:
        """Raise when a detector that learns something has learnt nothing yet, or not from such a bank's network."""
        if not self._buffers:
            raise InputError(f"detector {type(self).__name__}", "is not fitted", "Call fit(bank) first.")
        known = self._buffers.get("learnt_from")
        if bank is None or known is None or torch.compiler.is_exporting():
            return
        (size, classes, weights), (found, logits, made_by) = known.tolist(), _origin(bank).tolist()
        remedy = "Fit the detector on outputs of the network whose outputs it is to score."
        if found != size:
            raise InputError("bank", f"has features of size {found}, but the detector learnt {size}", remedy)
        if self.needs_logits and logits != classes:
            raise InputError("bank", f"has {logits} classes, but the detector learnt {classes}", remedy)
        if weights and made_by and made_by != weights:
            raise InputError("bank", "holds the outputs of another network than the detector learnt", remedy)


def _by_blocks(score: Callable[[Any, Bank], Tensor]) -> Callable[[Any, Bank], Tensor]:
    """The same scores, of at most `BLOCK` examples at a time: an example's does not depend on the others."""

    @wraps(score)
    def whole(self: Any, bank: Bank) -> Tensor:
        if torch.compiler.is_exporting() or len(bank) <= BLOCK:
            return score(self, bank)
        found = []
        for number, part in enumerate(bank.blocks(BLOCK)):
            try:
                found.append(score(self, part))
            except InputError as error:  # names rows of the block
                start = number * BLOCK
                raise InputError(
                    f"{error.subject} (rows from {start})", error.problem, error.remedy
                ) from None
        return torch.cat(found)

    return whole


def _origin(bank: Bank) -> Tensor:
    """(3,) int64: size of the features, number of classes, hash of the network's weights or 0."""
    return torch.tensor([bank.features.shape[1], bank.logits.shape[1], bank.network_hash or 0])


def require_finite(features: Tensor, what: str) -> Tensor:
    """The features themselves; raises when some are NaN or infinite, naming how many and where.

    An exported graph cannot raise: there, they pass, and a score of NaN is below every threshold.
    """
    if torch.compiler.is_exporting():
        return features
    if torch.isfinite(features.sum()):  # no sum with NaN or an infinity in it is
        return features
    bad = torch.cat([~torch.isfinite(part).all(-1) for part in features.split(BLOCK)])
    if bad.any():
        raise InputError(
            what,
            f"has NaN or infinite values in {int(bad.sum())} row(s), first in row {int(bad.nonzero()[0])}",
            "Check the network's outputs.",
        )
    return features
