"""A predictor: what a learner returns, and what gets deployed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import nn

from unseen.detection import Familiarity
from unseen.networks import Bank, Network
from unseen.registry import Spec
from unseen.shifts import Shift
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.data import Observer, network_outputs
from unseen.training.reference import Reference, read_reference


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
        self.familiarity: Familiarity | None = None
        self._reference: Reference | Path | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def reference(self) -> Reference | None:
        """Outputs for ID validation examples to compare new inputs with; read from the model folder when first used."""
        if isinstance(self._reference, Path):
            self._reference = read_reference(self._reference)
        return self._reference

    @reference.setter
    def reference(self, reference: Reference | Path | None) -> None:
        self._reference = reference

    def outputs(
        self,
        inputs: Any,
        observers: Sequence[Observer] = (),
        *,
        folder: str | Path | None = None,
        dtype: str = "float32",
    ) -> Bank:
        """Features and logits of raw inputs (an array, images, a data frame, texts, or a `Shift`).

        observers  detectors whose banks need more of the network; its own sense of the familiar is always one
        folder     where they are kept, for sets that would fill the memory: written while the inputs pass the
                   network, opened memory-mapped, and opened alone when asked for again
        dtype      of features and logits in the folder, "float32" or "float16"; see `Bank.save`
        Raises `InputError` for a folder that holds other inputs' or another model's outputs, or lacks what an
        observer reads.
        """
        raw = inputs.inputs if isinstance(inputs, Shift) else inputs
        if self.familiarity is not None:
            observers = [*observers, self.familiarity.detector]
        if folder is not None:
            from unseen.training.kept_outputs import kept_outputs

            return kept_outputs(self, inputs, folder, observers, dtype)
        stored = self.preprocessing.encode(raw)
        bank = network_outputs(self.network, self.preprocessing, stored, self.device, observers=observers)
        if isinstance(inputs, Shift):
            bank.labels, bank.domain, bank.domains = inputs.labels, inputs.domain, inputs.domains
        return bank

    def know_familiar(
        self, detector: str | Spec, train: Bank, validation: Bank, coverage: float = 0.95
    ) -> Self:
        """Fit the sense of the familiar: detector on `train`, abstention threshold on `validation` outputs."""
        self.familiarity = Familiarity.fit(detector, train, validation, coverage)
        return self

    def predict(self, inputs: Any) -> pd.DataFrame:
        """One row an example: label, a probability a class, and (once fitted) familiarity and accept."""
        bank = self.outputs(inputs)
        table = pd.DataFrame({"label": [self.classes[i] for i in bank.predictions.tolist()]})
        for index, name in enumerate(self.classes):
            table[f"p({name})"] = bank.probabilities[:, index].numpy()
        if self.familiarity is not None:
            scores = self.familiarity.score(bank)
            table["familiarity"] = scores.numpy()
            table["accept"] = (scores >= self.familiarity.threshold).numpy()
        return table

    def save(self, folder: str | Path) -> Path:
        """Write the model folder: weights (safetensors), description (JSON), card (README.md)."""
        from unseen.training.model_folder import save

        return save(self, folder)

    def export_onnx(self, path: str | Path, *, familiarity: bool = True) -> Path:
        """Write one ONNX file that serves without this library; see `unseen.training.onnx_export`."""
        from unseen.training.onnx_export import export_onnx

        return export_onnx(self, path, familiarity=familiarity)
