"""A network under parameters of its own: what adaptation to a few labels leaves, beside the untouched network."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.networks import Bank, Network
from unseen.networks.modes import evaluating
from unseen.registry import Spec, detectors
from unseen.shifts.task_streams import Labelled

Tensors = dict[str, Tensor]


class AdaptedView:
    """A network with parameters of its own, as inner steps left them; the network itself is not changed.

    parameters, buffers  by name, without gradient
    """

    def __init__(self, model: nn.Module, parameters: Tensors, buffers: Tensors, detector: str | Spec):
        self._model, self.parameters, self.buffers = model, parameters, buffers
        self._detector = detectors.build(detector)

    @torch.no_grad()
    def bank(self, x: Tensor) -> Bank:
        """Features and logits of inputs (N, ...); of a model that is no `Network`, the logits are both."""
        state = {**self.parameters, **self.buffers}
        with evaluating(self._model):
            if not isinstance(self._model, Network):
                logits = functional_call(self._model, state, (x,))
                return Bank(logits, logits)
            features = functional_call(self._model.featurizer, _below("featurizer.", state), (x,))
            return Bank(features, functional_call(self._model.head, _below("head.", state), (features,)))

    def predict(self, x: Tensor) -> Tensor:
        """Classes (N,) int64."""
        return self.bank(x).predictions

    def fit_detector(self, support: Labelled) -> Self:
        """Detectors that learn (distances to neighbours or to class means) do so from the support."""
        bank = self.bank(support.x)
        bank.labels = support.y
        self._detector.fit(bank)
        return self

    def score(self, x: Tensor) -> Tensor:
        """(N,) float32, higher = more familiar."""
        return self._detector.score(self.bank(x))


def _below(prefix: str, state: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
