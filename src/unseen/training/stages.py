"""Stages of a run: what an objective does before and after its training, and the trainings it asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.networks import Bank, Network
from unseen.objectives import Objective
from unseen.registry import Spec
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.data import TrainingData
from unseen.training.learner import Learner

Train = Callable[[Learner, int, Path | None], Network]
"""Trains a learner with a seed and a checkpoint, alone and on the run's device."""

KINDS = {"begin": -1, "finish": -2}
"""The kinds of stages, and what keeps their seeds apart from those of the steps between."""


def has_stages(objective: Objective) -> bool:
    """Whether the objective does anything before or after its training."""
    return any(getattr(type(objective), kind) is not getattr(Objective, kind) for kind in KINDS)


class TrainingStage:
    """The `unseen.objectives.Stage` of a run.

    kind        "begin" or "finish": their seeds and checkpoints differ
    checkpoint  the run's checkpoint, or None; trainings of the stage keep theirs beside it
    """

    def __init__(
        self,
        kind: Literal["begin", "finish"],
        learner: Learner,
        data: TrainingData,
        seed: int,
        network: Network,
        device: torch.device,
        train: Train,
        checkpoint: Path | None,
    ):
        self.kind, self.learner, self.data, self.seed = kind, learner, data, seed
        self.network, self.device, self._train, self._checkpoint = network, device, train, checkpoint
        self.size, self.classes = len(data.split.shift), len(data.split.shift.classes)
        self.domains = len(data.split.train_domains)
        self.steps, self.batch_size = learner.steps, self.domains * learner.batch_size
        self.learning_rate, self.weight_decay = learner.learning_rate, learner.weight_decay
        self._trainings = 0

    def rows(self, role: Literal["train", "validation"]) -> Tensor:
        return self.data.split.rows(role)

    def labels(self, rows: Tensor) -> Tensor:
        return self.data.split.shift.labels[rows]

    def groups(self, rows: Tensor) -> Tensor:
        group = self.data.split.shift.group
        return self.data.domain[rows] if group is None else group[rows]

    def batch(self, rows: Tensor) -> Batch:
        return self.data.batch(rows, 0, self.device)

    def bank(self, network: Network, rows: Tensor) -> Bank:
        return self.data.bank(network, rows, self.device)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, KINDS[self.kind], 0))

    def train(
        self, objective: str | Spec = "erm", *, update: str | Spec = "plain", **changes: Any
    ) -> Network:
        learner = self.learner.replace(
            **{"averaging": None, **changes, "objective": objective, "update": update}
        )
        learner.check()
        self._trainings += 1
        seed = derive_seed(self.seed, KINDS[self.kind], self._trainings)
        path = self._checkpoint
        if path is not None:
            path = path.with_name(f"{path.name}.{self.kind}-{self._trainings}")
        return self._train(learner, seed, path)


def remove_checkpoints(checkpoint: Path) -> None:
    """Delete what trainings of stages have kept beside a run's checkpoint, theirs included."""
    if checkpoint.parent.is_dir():
        for path in list(checkpoint.parent.iterdir()):
            if path.name.startswith(tuple(f"{checkpoint.name}.{kind}-" for kind in KINDS)):
                path.unlink(missing_ok=True)
