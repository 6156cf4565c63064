"""What an objective may see and do before and after its training (`Objective.begin`, `Objective.finish`)."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from unseen.networks import Bank, Network
from unseen.registry import Spec
from unseen.shifts import Batch


class Stage(Protocol):
    """A run's network and labelled data, but for unseen domains, and a way to train another learner on them.

    network  the run's own: as built in `begin`, the final weights in `finish`; may be changed in place
    device   where `network` lies
    size     number of rows of the shift, the ones of no interest here included: ids are below it
    classes  number of classes
    domains  number of training domains
    steps    number of updates of the run
    batch_size
             number of examples in one of them, of all training domains together
    learning_rate, weight_decay
             of the run's optimizer, for an objective that trains something by itself
    """

    network: Network
    device: torch.device
    size: int
    classes: int
    domains: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def rows(self, role: Literal["train", "validation"]) -> Tensor:
        """(N,) int64 ids of the rows of a role."""
        ...

    def labels(self, rows: Tensor) -> Tensor:
        """(N,) int64 labels of the rows."""
        ...

    def groups(self, rows: Tensor) -> Tensor:
        """(N,) int64 group attribute of the rows, or their training domain where the data has no such attribute."""
        ...

    def batch(self, rows: Tensor) -> Batch:
        """The rows (N,) as a batch on `device`: inputs as the network reads them, labels, domain, group, ids."""
        ...

    def bank(self, network: Network, rows: Tensor) -> Bank:
        """Features, logits, labels and ids of the rows under a network in evaluation mode, on the CPU."""
        ...

    def generator(self) -> torch.Generator:
        """A generator of the stage's own, decided by the run's seed: the same at every call."""
        ...

    def train(
        self, objective: str | Spec = "erm", *, update: str | Spec = "plain", **changes: Any
    ) -> Network:
        """Train another learner on the same data with a seed of its own and return its network, on `device`.

        changes  further fields of the run's learner that differ, such as `steps`; averaging is off unless given
        Where the run keeps a checkpoint, this training keeps one beside it and goes on from it.
        """
        ...
