"""Checkpoints of a single training run: whole or not there, and only for the run that wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from unseen.errors import InputError
from unseen.training.data import TrainingData
from unseen.training.learner import Learner


def identity(learner: Learner, data: TrainingData, seed: int) -> str:
    return f"{learner.key} {data.split.shift.fingerprint} {sorted(data.split.unseen_domains)} {data.split.seed} {seed}"


def save_checkpoint(
    path: Path, fabric: Any, learner: Learner, data: TrainingData, seed: int, state: dict[str, Any]
) -> None:
    if fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        torch.save({"identity": identity(learner, data, seed), **state}, temporary)
        os.replace(temporary, path)


def load_checkpoint(path: Path, learner: Learner, data: TrainingData, seed: int) -> dict[str, Any]:
    try:
        saved = torch.load(path, weights_only=True)
    except Exception:  # the reader raises many kinds; their texts advise loading it unsafely
        raise InputError(f"checkpoint {str(path)!r}", "cannot be read", "Delete it to start anew.") from None
    if saved.get("identity") != identity(learner, data, seed):
        raise InputError(
            f"checkpoint {str(path)!r}",
            "belongs to another learner, split or seed",
            "Choose another file name.",
        )
    return saved
