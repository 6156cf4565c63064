"""Scores of inputs that were moved along the gradient of the network's answer."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from unseen.detection.bank_parts import require_head, require_rows
from unseen.detection.base import Detector, require_finite
from unseen.detection.shaping import require_share
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.registry import detectors


def require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(name, f"is {value}", "Give a positive number.")


def require_continuous(inputs: Any, what: str) -> Tensor:
    """The inputs themselves; raises for graphs, several inputs at once, and whole numbers: they have no gradient."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = f"of type {inputs.dtype}" if isinstance(inputs, Tensor) else "of several tensors"
        raise InputError(
            what, f"moves inputs along a gradient, but they are {found}", "Choose another detector."
        )
    return inputs


def gradient_of_answer(network: Network, inputs: Tensor, temperature: float | None) -> Tensor:
    """(B, ...) gradient of the largest log softmax at a temperature, or (None) of the largest logit, by the input."""
    with torch.inference_mode(False), torch.enable_grad():
        moved = inputs.detach().clone().requires_grad_()
        logits = network(moved).float()
        answer = logits if temperature is None else torch.log_softmax(logits / temperature, 1)
        (gradient,) = torch.autograd.grad(answer.amax(1).sum(), moved)
    return gradient


@detectors.register(
    "odin",
    summary="Largest softmax probability at a high temperature, of inputs moved towards it",
    paper="Liang et al. 2018, arXiv 1706.02690",
    search={"temperature": ("log", 1.0, 1000.0), "noise": ("log", 1e-4, 1e-1)},
)
class ODIN(Detector):
    """T (log S + log C) of the largest probability S among C at temperature T: ranks as S, without its rounding.

    temperature  T
    noise        length of the step along the sign of the gradient of log S, in units of the network's inputs

    One more forward and one backward pass for every input, both within the pass over the data.
    """

    needs_logits = True

    def __init__(self, temperature: float = 1000.0, noise: float = 0.0014):
        super().__init__()
        require_positive("temperature", temperature)
        if not 0 <= noise < math.inf:
            raise InputError("noise", f"is {noise}", "Give a number from 0.")
        self.temperature, self.noise = temperature, noise
        self.name = f"odin({temperature}, {noise})"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = require_continuous(inputs, "odin")
        gradient = gradient_of_answer(network, inputs, self.temperature)
        return {self.name: network(inputs + self.noise * gradient.sign()).float()}

    def score(self, bank: Bank) -> Tensor:
        require_finite(bank.logits, "logits")
        logits = self.seen(bank, self.name)
        largest = torch.log_softmax(logits / self.temperature, 1).amax(1)
        return self.temperature * (largest + math.log(logits.shape[1]))


@detectors.register(
    "adascale",
    summary="Energy after activations are scaled, the more the less an input's features move with its pixels",
    paper="Regmi 2025, arXiv 2503.08023",
    search={"weight": ("log", 1.0, 30.0), "low": ("uniform", 0.5, 0.8)},
)
class AdaScale(Detector):
    """`Scale` with a share of pruned activations for each input, between `low` and `high`.

    pixels  share of an input's values, those of the smallest gradient of the largest logit, that are moved
    step    how far, in units of the network's inputs
    top, top_moved  shares of the largest activations whose moved values, and whose shifts, are summed (one at least)
    weight  of the shifts beside the moved values

    Where the sum lies among those of the training features decides the share: a small sum is familiar. One more
    forward and one backward pass for every input. Defaults are the paper's for ImageNet.
    """

    needs_logits = True
    sums: Tensor

    def __init__(
        self,
        low: float = 0.6,
        high: float = 0.85,
        pixels: float = 0.05,
        step: float = 0.5,
        top: float = 0.01,
        top_moved: float = 0.05,
        weight: float = 10.0,
    ):
        super().__init__()
        for name, value in {"low": low, "high": high, "pixels": pixels}.items():
            require_share(name, value)
        for name, value in {"step": step, "top": top, "top_moved": top_moved}.items():
            require_positive(name, value)
        if low > high:
            raise InputError("low", f"is {low}, above high={high}", "Give low <= high.")
        self.low, self.high, self.pixels, self.step = low, high, pixels, step
        self.top, self.top_moved, self.weight = top, top_moved, weight
        self.name = f"adascale({pixels}, {step})"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = require_continuous(inputs, "adascale")
        gradient = gradient_of_answer(network, inputs, None).flatten(1)
        count = max(1, int(self.pixels * gradient.shape[1]))
        weakest = gradient.abs().topk(count, 1, largest=False).indices
        step = torch.zeros_like(gradient).scatter(1, weakest, self.step * gradient.sign().gather(1, weakest))
        return {self.name: network.featurizer(inputs + step.view_as(inputs)).float()}

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        self.keep(bank, sums=self._sums(bank).sort().values)
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        sums, features = self._sums(bank), bank.features.float()
        above = 1 - torch.searchsorted(self.sums, sums, right=True) / len(self.sums)
        pruned = self.low + (self.high - self.low) * above
        size = features.shape[1]
        kept = (size - (size * pruned).round()).clamp(min=1).long()
        ordered = features.clamp(min=0).sort(1, descending=True).values.cumsum(1)
        part = ordered.gather(1, kept[:, None] - 1)
        ratio = torch.where(part > 0, ordered[:, -1:] / part.clamp(min=1e-30), 1)
        return linear(features * ratio.exp(), *require_head(bank)).logsumexp(1)

    def _sums(self, bank: Bank) -> Tensor:
        """(N,) the moved values of the largest activations plus `weight` times their shifts."""
        features, moved = require_finite(bank.features, "features").float(), self.seen(bank, self.name)
        size = features.shape[1]
        few, more = (max(1, int(size * share)) for share in (self.top, self.top_moved))
        order = features.topk(max(few, more), 1).indices
        values = moved.clamp(min=0).gather(1, order[:, :few]).sum(1)
        return values + self.weight * (features - moved).abs().gather(1, order[:, :more]).sum(1)
