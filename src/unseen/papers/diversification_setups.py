"""What the diversification reproduction trains on, and with: dominoes or Waterbirds, and three learners."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network, build_network
from unseen.registry import Spec, networks
from unseen.shifts import Shift
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.builtin.two_cue_dominoes import LOWER, UPPER, two_cue_dominoes
from unseen.shifts.image_folders import ImageFiles
from unseen.shifts.sampling import derive_seed

PRETRAINING_STEPS = 600
BASE, ARCHITECTURE, START = "", "other architecture", "other initialization"


@dataclass(frozen=True)
class Setup:
    """Data and sizes of one scale.

    shift     makes the data of a seed: domains "train", "pool" and "balanced"
    networks  kind of learner -> network
    count     unlabelled examples of a run
    steps     updates of each member or, side by side, of all of them
    penalty   weight of D-BAT's disagreement
    settings  further fields of every learner
    """

    shift: Callable[[int], Shift]
    networks: dict[str, Spec]
    count: int
    steps: int
    penalty: float
    settings: dict[str, Any] = field(default_factory=dict)


LAPTOP = Setup(
    shift=lambda seed: two_cue_dominoes(seed=seed),
    networks={
        BASE: Spec.make("mlp", width=128, depth=1),
        ARCHITECTURE: Spec.make("cnn", width=8),
        START: Spec("mlp-of-other-digits"),
    },
    count=1200,
    steps=600,
    penalty=1.0,
    settings={"batch_size": 128, "learning_rate": 1e-3},
)


def full_setup() -> Setup:
    """Waterbirds with complete correlation, and backbones that are fine-tuned as in the authors' fork of D-BAT."""
    backbone = os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")
    return Setup(
        shift=lambda seed: waterbirds(),
        networks={
            BASE: Spec.make("pretrained", name=backbone),
            ARCHITECTURE: Spec("resnet"),
            START: Spec("cnn"),
        },
        count=266,  # twice the 133 waterbirds on land of the official validation set
        steps=1500,
        penalty=0.1,
        settings={"batch_size": 64, "learning_rate": 1e-3, "optimizer": "sgd", "weight_decay": 1e-4},
    )


def waterbirds(folder: str | Path | None = None) -> Shift:
    """Waterbirds (Sagawa et al. 2020) whose training examples all show the bird on its own background.

    folder  with the official metadata.csv and images; default $UNSEEN_DATA/waterbirds
    Training and ID validation come from the official training images without the minority groups, the pool is
    the official validation set, the judge the official test set.
    """
    place = Path(folder or Path(os.environ.get("UNSEEN_DATA", "."), "waterbirds"))
    if not (place / "metadata.csv").is_file():
        raise InputError(
            f"folder {str(place)!r}",
            "holds no metadata.csv",
            "Put the official waterbird_complete95_forest2water2 there, or set UNSEEN_DATA.",
        )
    table = pd.read_csv(place / "metadata.csv")
    table = table[(table["split"] != 0) | (table["y"] == table["place"])]
    return Shift(
        name="waterbirds",
        kind="image",
        inputs=ImageFiles(place, table["img_filename"].tolist(), (224, 224), 3),
        labels=torch.tensor(table["y"].to_numpy()),
        domain=torch.tensor(table["split"].to_numpy()),
        classes=("landbird", "waterbird"),
        domains=("train", "pool", "balanced"),
        ids=table["img_filename"].tolist(),
        group=torch.tensor(table["place"].to_numpy()),
        groups=("land", "water"),
    )


@networks.register(
    "mlp-of-other-digits",
    summary="For a reproduction: a perceptron that has learned both halves of dominoes of other digits",
)
def mlp_of_other_digits(*, input_shape: Any, classes: int) -> Network:
    """One hidden layer of 128; its first weights come from naming both digits of dominoes of 2, 3, 5, 6, 7, 8."""
    network = build_network(LAPTOP.networks[BASE], input_shape, classes)
    network.featurizer.load_state_dict(_pretrained())
    return network


@lru_cache(maxsize=1)
def _pretrained() -> dict[str, torch.Tensor]:
    images, digits = mnist()
    kept = [digit for digit in range(10) if digit not in (*UPPER, *LOWER)]
    small = images.view(len(images), 14, 2, 14, 2).float().mean((2, 4))
    pool = torch.isin(digits, torch.tensor(kept)).nonzero().squeeze(1)
    small = (small - small[pool].mean()) / small[pool].std()  # as dominoes are standardised for training
    number = torch.searchsorted(torch.tensor(kept), digits)
    generator = torch.Generator().manual_seed(derive_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(1))
        network = build_network(LAPTOP.networks[BASE], (1, 28, 14), 2 * len(kept))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(PRETRAINING_STEPS):
            upper, lower = pool[torch.randint(len(pool), (2, 128), generator=generator)]
            logits = network(torch.cat([small[upper], small[lower]], 1)[:, None])
            halves = zip(logits.split(len(kept), 1), (number[upper], number[lower]), strict=True)
            loss = torch.stack([nn.functional.cross_entropy(own, label) for own, label in halves]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach() for name, value in network.featurizer.state_dict().items()}
