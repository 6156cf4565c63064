"""Feature bank: what one pass of a network over a data set gives; detectors and measures read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 8192
"""Examples that are written, or scored, at a time: some 100 MB of 2,048 features and what is computed of them."""


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
        half = self.logits.dtype == torch.float16
        return torch.softmax(self.logits, -1, dtype=torch.float32 if half else None)

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """(N,) bool: whether the predicted class is the label."""
        if self.labels is None:
            raise ValueError("this bank holds no labels")
        return self.predictions == self.labels

    def save(self, folder: str | Path, *, dtype: str = "float32") -> Path:
        """Write the bank into a folder of its own, whole or not at all; an older bank there is replaced.

        dtype  of features and logits: "float32" (bit by bit), or "float16" for half the disk, rounded to 11 binary
               digits (an error of 0.05 % at most). What detectors kept of the pass stays float32.
        Raises `InputError` for a folder that holds anything but a bank or cannot be written, and for values that
        float16 cannot hold. `unseen.networks.bank_files.write_bank` writes a bank that comes part by part.
        """
        from unseen.networks.bank_files import write_bank

        return write_bank(folder, self.blocks(BLOCK), len(self), dtype=dtype)

    @classmethod
    def open(cls, folder: str | Path, *, network: int | None = None, data: str | None = None) -> Bank:
        """The bank that `save` wrote, memory-mapped: only what is read comes into memory.

        network, data  hashes that it must have: of the weights (`network_hash`), and of the inputs
        Raises `InputError` where there is no bank, a file is not whole, or another network or other inputs made it.
        """
        from unseen.networks.bank_files import open_bank

        return open_bank(folder, network=network, data=data)

    def blocks(self, rows: int) -> Iterator[Bank]:
        """The same examples, at most `rows` at a time: views, and one empty bank if there are none."""
        for start in range(0, max(len(self), 1), rows):
            yield self.take(slice(start, start + rows))

    def take(self, rows: Tensor | slice) -> Bank:
        """The examples that `rows` (positions, a mask or a slice) names."""

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
