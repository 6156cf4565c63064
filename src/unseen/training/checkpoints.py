"""Checkpoints of a single training run: whole or not there, and only for the run that wrote them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from unseen.averaging import StateDict
from unseen.errors import InputError
from unseen.training.data import TrainingData
from unseen.training.learner import Learner


def identity(learner: Learner, data: TrainingData, seed: int, start: StateDict | None = None) -> str:
    split = data.split
    found = f"{learner.key} {split.shift.fingerprint} {sorted(split.unseen_domains)} {split.seed} {seed}"
    return found if start is None else f"{found} {_digest(start)}"


def _digest(state: StateDict) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_checkpoint(
    path: Path,
    fabric: Any,
    learner: Learner,
    data: TrainingData,
    seed: int,
    start: StateDict | None,
    state: dict[str, Any],
) -> None:
    if fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        torch.save({"identity": identity(learner, data, seed, start), **state}, temporary)
        os.replace(temporary, path)


def load_checkpoint(
    path: Path, learner: Learner, data: TrainingData, seed: int, start: StateDict | None = None
) -> dict[str, Any]:
    try:
        saved = torch.load(path, weights_only=True)
    except Exception:  # the reader raises many kinds; their texts advise loading it unsafely
        raise InputError(f"checkpoint {str(path)!r}", "cannot be read", "Delete it to start anew.") from None
    if saved.get("identity") != identity(learner, data, seed, start):
        raise InputError(
            f"checkpoint {str(path)!r}",
            "belongs to another learner, split or seed, or to another start",
            "Choose another file name.",
        )
    return saved
