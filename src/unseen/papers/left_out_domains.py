"""DomainBed's protocol on a folder of images: each domain left out in turn, a pretrained backbone fine-tuned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import Spec
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift
from unseen.training.data import TrainingData
from unseen.training.fit import fit
from unseen.training.learner import Learner


def left_out_accuracy(
    objective: Spec, seed: int, shift: Shift | None = None, **settings: Any
) -> dict[str, float]:
    """Accuracy on every domain of `shift` (default `image_folder`) when the others are trained on; settings as in
    `left_out_networks`."""
    return {
        name: float(np.mean(data.bank(network, "unseen").correct.numpy()))
        for name, network, data in left_out_networks(objective, seed, shift, **settings)
    }


def left_out_networks(
    objective: Spec, seed: int, shift: Shift | None = None, **settings: Any
) -> Iterator[tuple[str, Network, TrainingData]]:
    """Each domain of `shift` (default `image_folder`), a network trained on the others, and the data.

    settings  of the `Learner`, in place of DomainBed's defaults (5,000 steps of 32 images a domain, Adam at
              5e-5, the weights of the best ID validation) and the backbone of $UNSEEN_BACKBONE
    """
    shift = open_shift(image_folder()) if shift is None else shift
    backbone = os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")
    defaults: dict[str, Any] = {
        "network": Spec.make("pretrained", name=backbone),
        "learning_rate": 5e-5,
        "steps": 5000,
        "batch_size": 32,
        "evaluations": 17,  # every 300 steps
    }
    learner = Learner(objective=objective, **{**defaults, **settings})
    for name in shift.domains:
        split = shift.split(unseen=name, seed=seed)
        data = TrainingData(split)
        yield name, fit(learner, split, seed=seed, data=data).network, data


def image_folder() -> Path:
    """The folder domain/class/image that $UNSEEN_IMAGES names, else PACS in $UNSEEN_DATA."""
    named = os.environ.get("UNSEEN_IMAGES") or os.path.join(os.environ.get("UNSEEN_DATA", ""), "PACS")
    if not Path(named).is_dir():
        raise InputError(
            f"image folder {named!r}",
            "does not exist",
            "Set UNSEEN_IMAGES to a folder domain/class/image, or UNSEEN_DATA to one that holds PACS.",
        )
    return Path(named)
