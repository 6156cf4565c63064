"""How much of an input's neurons are in states that training has covered."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import require_rows
from unseen.detection.base import Detector, require_finite
from unseen.detection.input_gradients import require_positive
from unseen.detection.layer_scores import require_layers
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.networks.taps import as_map, tapped
from unseen.registry import detectors


@detectors.register(
    "nac",
    summary="Mean coverage in training of the states of an input's neurons",
    paper="Liu et al. 2024, arXiv 2306.02879",
    search={"bins": ("integer", 10, 500), "full": ("log", 1e-3, 1e-1), "steepness": ("log", 1e-1, 10.0)},
)
class NeuronCoverage(Detector):
    """Mean over all neurons of min(share of training inputs in the same bin of the neuron's state / full, 1).

    bins       of each neuron's states, over (0, 1)
    full       share of the training inputs in a bin from which on it counts as covered
    steepness  of the sigmoid that makes states of activation times gradient, in units of their mean size in training

    A neuron is a channel, averaged over places; the gradient is that of the divergence of the softmax from uniform.
    The paper gives each layer a steepness by search on unfamiliar inputs; here it is relative to what training shows.
    One more forward and one backward pass for every batch.
    """

    needs_logits = True
    size: Tensor
    coverage: Tensor

    def __init__(self, bins: int = 50, full: float = 0.02, steepness: float = 1.0):
        super().__init__()
        if bins < 2:
            raise InputError("bins", f"are {bins}", "Give two at least.")
        require_positive("full", full)
        require_positive("steepness", steepness)
        self.bins, self.full, self.steepness = bins, full, steepness

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        require_layers(layers, "nac")
        with torch.inference_mode(False), torch.enable_grad():
            own = {k: v.clone() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.clone()
            with tapped(network, _with_gradient) as seen:
                logits = network(own).float()
            uniform_loss = -torch.log_softmax(logits, 1).mean(1).sum()  # the divergence, up to a constant
            gradients = torch.autograd.grad(uniform_loss, list(seen.values()), allow_unused=True)
        found = {}
        for (name, output), gradient in zip(seen.items(), gradients, strict=True):
            if gradient is not None:
                shifted = as_map(gradient.float()).sum(2)  # what a shift of the whole channel does
                found[f"nac/{name}"] = as_map(output.detach().float()).mean(2) * shifted
        return found

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        require_finite(bank.logits, "logits")
        raw, sizes = self._raw(bank)
        size = torch.cat([p.abs().mean().expand(p.shape[1]) for p in raw.split(sizes, 1)]).clamp(min=1e-30)
        where = self._bin(raw, size)
        counts = raw.new_zeros(raw.shape[1], self.bins)
        counts.scatter_add_(1, where.T, torch.ones_like(raw.T))
        self.keep(bank, size=size, coverage=(counts / (len(raw) * self.full)).clamp(max=1))
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        require_finite(bank.logits, "logits")
        raw, _ = self._raw(bank)
        return self.coverage.gather(1, self._bin(raw, self.size).T).mean(0)

    def _bin(self, raw: Tensor, size: Tensor) -> Tensor:
        states = torch.sigmoid(self.steepness * raw / size)
        return (states * self.bins).long().clamp(max=self.bins - 1)

    def _raw(self, bank: Bank) -> tuple[Tensor, list[int]]:
        names = [name for name in bank.layers if name.startswith("nac/")] or ["nac/"]
        parts = [self.seen(bank, name) for name in names]
        return torch.cat(parts, 1), [part.shape[1] for part in parts]


def _with_gradient(name: str, output: Tensor) -> Tensor:
    """A layer whose parameters are frozen, and all before it, begins the graph."""
    return output if output.requires_grad else output.requires_grad_()
