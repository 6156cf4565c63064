"""Feature bank: what one pass of a network over a data set gives; detectors and measures read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Bank:
    """Outputs for N examples.

    features  (N, D) float, inputs of the linear head
    logits    (N, C) float
    labels    (N,) int64 or None
    domain    (N,) int64 index into `domains` or None
    ids       (N,) int64 rows of the shift, or None
    head      the linear head, for scores that need its weights
    layers    what else was kept of the pass, by name, each (N, ...): see `unseen.detection.Detector.observe`
    network_hash  of the weights of the network that made the outputs, or None where it is not known
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None = None
    domain: Tensor | None = None
    ids: Tensor | None = None
    head: nn.Linear | None = None
    layers: dict[str, Tensor] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    network_hash: int | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def probabilities(self) -> Tensor:
        return torch.softmax(self.logits, -1)

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """(N,) bool: whether the predicted class is the label."""
        if self.labels is None:
            raise ValueError("this bank holds no labels")
        return self.predictions == self.labels

    def take(self, rows: Tensor) -> Bank:
        """The examples that `rows` (positions or a mask) names."""

        def pick(value: Any) -> Any:
            return None if value is None else value[rows]

        return Bank(
            self.features[rows],
            self.logits[rows],
            pick(self.labels),
            pick(self.domain),
            pick(self.ids),
            self.head,
            {name: value[rows] for name, value in self.layers.items()},
            self.domains,
            self.network_hash,
        )
