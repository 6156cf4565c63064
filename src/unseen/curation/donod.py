"""DONOD: keep the examples that move the output layer little, and change its norm in the wanted direction."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from unseen.curation.base import Loss, Pool, Selector, example_loss, require_model
from unseen.curation.multi_criteria import Normalize, topsis
from unseen.curation.weight_dynamics import Layers, weight_dynamics_scores
from unseen.errors import InputError
from unseen.registry import selectors


@selectors.register(
    "donod",
    summary="TOPSIS of how far an example moves the output layer and changes its norm",
    paper="DONOD 2025, arXiv 2504.14810",
)
class DONOD(Selector):
    """By the closeness to the ideal of little movement (NOD) and a change of norm (DON) in the wanted direction.

    don_direction  "max": a falling norm is good, as published summaries of the paper have it; "min": a rising one;
                   "abs": a steady one. To first order the norm falls where the label's logit is below the expected
                   logit: "max" prefers examples that are fitted badly
    weights        of DON and NOD; (0, 1) is NOD alone
    normalize      of TOPSIS; "vector" is the paper's, "rank" lets no outlier decide
    layers, mode, optimizer, learning_rate, seed, loss
                   see `weight_dynamics_scores`

    After `fit`, `details` has those scores and the closeness.
    """

    details: pd.DataFrame | None = None

    def __init__(
        self,
        don_direction: Literal["max", "min", "abs"] = "max",
        weights: tuple[float, float] = (0.5, 0.5),
        normalize: Normalize = "vector",
        layers: Layers = "output",
        mode: Literal["static", "online"] = "static",
        optimizer: Literal["sgd", "adamw"] = "sgd",
        learning_rate: float = 1e-2,
        seed: int = 0,
        loss: Loss = "labels",
    ):
        if don_direction not in ("max", "min", "abs"):
            raise InputError(
                f"don_direction {don_direction!r}", "is not known", "Give 'max', 'min' or 'abs'."
            )
        self.don_direction, self.weights, self.normalize = don_direction, weights, normalize
        self.layers, self.mode, self.optimizer = layers, mode, optimizer
        self.learning_rate, self.seed, self.loss = learning_rate, seed, example_loss(loss)

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        details = weight_dynamics_scores(
            require_model(model, "the movement of weights"),
            pool,
            self.loss,
            self.layers,
            self.mode,
            self.optimizer,
            self.learning_rate,
            self.seed,
        )
        don = np.abs(details.don) if self.don_direction == "abs" else details.don
        benefit = (self.don_direction == "max", False)
        closeness = topsis(np.column_stack([don, details.nod]), benefit, self.weights, self.normalize)
        self.details = details.assign(closeness=closeness)
        return torch.from_numpy(closeness)
