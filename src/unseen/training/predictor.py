"""A predictor: what a learner returns, and what gets deployed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import nn

from unseen.networks import Bank, Network
from unseen.shifts import Shift
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.data import network_outputs


class Predictor(nn.Module):
    """A trained network with its preprocessing and class names, and (once fitted) its sense of the familiar.

    `outputs(inputs)` gives a `Bank` for raw inputs; `predict(inputs)` a table to read.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        *,
        facts: dict[str, Any] | None = None,
        history: list[dict[str, Any]] | None = None,
    ):
        super().__init__()
        self.network, self.preprocessing, self.classes = network, preprocessing, tuple(classes)
        self.facts, self.history = facts or {}, history or []

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def outputs(self, inputs: Any) -> Bank:
        """Features and logits of raw inputs (an array, images, a data frame, texts, or a `Shift`)."""
        raw = inputs.inputs if isinstance(inputs, Shift) else inputs
        bank = network_outputs(self.network, self.preprocessing, self.preprocessing.encode(raw), self.device)
        if isinstance(inputs, Shift):
            bank.labels, bank.domain, bank.domains = inputs.labels, inputs.domain, inputs.domains
        return bank

    def predict(self, inputs: Any) -> pd.DataFrame:
        """One row an example: label and a probability a class."""
        bank = self.outputs(inputs)
        table = pd.DataFrame({"label": [self.classes[i] for i in bank.predictions.tolist()]})
        for index, name in enumerate(self.classes):
            table[f"p({name})"] = bank.probabilities[:, index].numpy()
        return table
