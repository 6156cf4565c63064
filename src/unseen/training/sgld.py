"""Samples of a network's posterior by Langevin noise, and the mixture of their predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unseen.errors import InputError, TrainingDiverged
from unseen.measures.chain_diagnostics import chain_sample_size, r_hat
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

PriorStd = float | Literal["fan-in"]


@dataclass(frozen=True)
class ChainQuality:
    """r_hat          largest split R-hat; above about 1.1 the chains disagree: more burn-in
    effective_samples  least effective sample size; far below the samples drawn: more thinning"""

    r_hat: float
    effective_samples: float


class SGLDEnsemble:
    """A mixture of networks sampled from their posterior by stochastic gradient Langevin dynamics.

    model_fn     makes a classifier with logits (B, C) and initial weights, from torch's global generator (seeded here);
                 no BatchNorm: the loss of an example must not depend on others
    prior_std    of the Gaussian prior of every weight, or "fan-in": 1 / sqrt(inputs of its layer)
    lr           eta: theta <- theta - eta / 2 grad U + N(0, eta temperature), U the whole negative log-posterior, so
                 about 1 / dataset size times the rate of plain gradient descent
    burn_in      steps before the first sample; thin: steps between samples
    chains       independent ones, moved as one stack; samples: of each chain
    temperature  1 samples the posterior; above 0
    batch_size   examples a step, whose gradient is scaled up to the whole data set

    Sources: Welling & Teh, ICML 2011; as the universal learner, Feder, Urbanke & Fogel 2025, arXiv 2506.07661.
    After `fit`: log_likelihoods_ (chains, samples), of the training data (of the last batch, scaled up, if batches
    were given).
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        prior_std: PriorStd,
        lr: float,
        burn_in: int,
        thin: int,
        chains: int,
        temperature: float = 1.0,
        *,
        samples: int = 10,
        batch_size: int = 32,
        seed: int = 0,
    ):
        if not temperature > 0:
            raise InputError(
                "temperature", f"is {temperature}", "Give a positive number; 1 is the posterior."
            )
        if not lr > 0 or burn_in < 0 or min(thin, chains, samples, batch_size) < 1:
            raise InputError(
                "lr, burn_in, thin, chains, samples or batch_size", "are out of range", "Raise them."
            )
        self.model_fn, self.prior_std, self.lr, self.temperature = model_fn, prior_std, lr, temperature
        self.burn_in, self.thin, self.chains, self.samples = burn_in, thin, chains, samples
        self.batch_size, self.seed = batch_size, seed

    def fit(self, x: Any, y: Tensor | None = None, *, dataset_size: int | None = None) -> Self:
        """Sample, given inputs (N, ...) and labels (N,), on their device; or batches (x, y), passed over repeatedly.

        dataset_size  N, which batches do not tell: without it the posterior would be far too wide
        Raises TrainingDiverged where the step is too large.
        """
        if y is None and dataset_size is None:
            raise InputError(
                "dataset_size",
                "is not given with batches",
                "A batch's gradient is scaled up to that many.",
            )
        models = self._models()
        batches, size = self._batches(x, y, dataset_size)
        device = next(batches)[1].device if y is None else y.device
        self._template = models[0].to(device)
        parameters, self._buffers = stack_module_state([model.to(device) for model in models])  # type: ignore[arg-type]
        deviations = prior_deviations(models[0], self.prior_std)
        noise = torch.Generator(device).manual_seed(derive_seed(self.seed, 1))
        kept: list[dict[str, Tensor]] = []
        likelihoods: list[Tensor] = []
        for step in range(self.burn_in + self.thin * self.samples):
            inputs, labels = next(batches)
            scale = size / labels.shape[-1]
            potential = -scale * self._log_likelihoods(parameters, inputs, labels)
            gradients = torch.autograd.grad(potential.sum(), list(parameters.values()))
            if not torch.isfinite(potential).all():
                raise TrainingDiverged(
                    f"SGLD: the loss is not finite at step {step}. Lower lr ({self.lr:g})."
                )
            with torch.no_grad():
                for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                    drift = gradient + value / deviations[name] ** 2
                    drawn = torch.randn(value.shape, generator=noise, device=device, dtype=value.dtype)
                    value.add_(drift, alpha=-self.lr / 2).add_(
                        drawn, alpha=math.sqrt(self.lr * self.temperature)
                    )
                if step >= self.burn_in and (step - self.burn_in + 1) % self.thin == 0:
                    kept.append({name: value.detach().clone() for name, value in parameters.items()})
                    everything = (inputs, labels) if y is None else (x, y)
                    found = self._log_likelihoods(parameters, *everything)
                    likelihoods.append(found * (scale if y is None else 1.0))
        self._samples = {name: torch.stack([one[name] for one in kept], 1) for name in kept[0]}
        self.log_likelihoods_ = torch.stack(likelihoods, 1).double().cpu().numpy()
        return self

    def predict_proba(self, x: Tensor) -> NDArray[np.float64]:
        """(N, C) mean of the samples' probabilities (not of their logits)."""
        return self.member_probabilities(x).mean((0, 1))

    def member_probabilities(self, x: Tensor) -> NDArray[np.float64]:
        """(chains, samples, N, C) probabilities of each sample."""
        if not hasattr(self, "_samples"):
            raise InputError("SGLDEnsemble", "is not fitted", "Call fit first.")

        def one(own: dict[str, Tensor], fixed: dict[str, Tensor]) -> Tensor:
            return torch.softmax(functional_call(self._template, (own, fixed), (x,)), -1)

        with torch.no_grad():
            chain = [
                vmap(one)({name: value[:, index] for name, value in self._samples.items()}, self._buffers)
                for index in range(self.samples)
            ]
        return torch.stack(chain, 1).double().cpu().numpy()

    def diagnose(self, x: Tensor | None = None) -> ChainQuality:
        """Convergence of the training log-likelihood, or of every predicted probability of inputs (N, ...).

        Weights have symmetries, predictions have not: the latter is what a mixture needs. Four samples at least.
        """
        if x is None:
            traces = [self.log_likelihoods_]
        else:
            probabilities = self.member_probabilities(x)
            traces = list(np.moveaxis(probabilities.reshape(*probabilities.shape[:2], -1), -1, 0))
        return ChainQuality(max(map(r_hat, traces)), min(map(chain_sample_size, traces)))

    def _models(self) -> list[nn.Module]:
        models = []
        for chain in range(self.chains):
            with seeded(self.seed, chain):
                models.append(self.model_fn().eval())
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in models[0].modules()):
            raise InputError(
                "model_fn",
                "has BatchNorm, with which there is no likelihood of an example",
                "Use LayerNorm or none.",
            )
        return models

    def _batches(
        self, x: Any, y: Tensor | None, dataset_size: int | None
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
        """Batches for ever, and N. Of arrays: (chains, B, ...), drawn for each chain."""
        if y is None:
            assert dataset_size is not None
            return _for_ever(x), dataset_size
        if len(x) != len(y):
            raise InputError("y", f"has {len(y)} entries, x {len(x)}", "Give one for each example.")
        size, count = min(self.batch_size, len(y)), len(y)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))

        def drawn() -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                rows = torch.rand(self.chains, count, generator=generator).argsort(1)[:, :size].to(y.device)
                yield x[rows], y[rows]

        return drawn(), dataset_size or count

    def _log_likelihoods(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """(chains,) sums over the examples; labels (B,) are shared, (chains, B) are each chain's own."""

        def one(own: Any, fixed: Any, inputs: Tensor, labels: Tensor) -> Tensor:
            logits = functional_call(self._template, (own, fixed), (inputs,))
            return -nn.functional.cross_entropy(logits, labels, reduction="sum")

        own = 0 if y.dim() == 2 else None
        return vmap(one, (0, 0, own, own))(parameters, self._buffers, x, y)


def prior_deviations(model: nn.Module, prior_std: PriorStd) -> dict[str, float]:
    """Standard deviation of the prior of each parameter; with "fan-in", a bias is as wide as its layer's weights."""
    if prior_std != "fan-in":
        if not isinstance(prior_std, int | float) or not 0 < prior_std < math.inf:
            raise InputError("prior_std", f"is {prior_std!r}", "Give a positive number, or 'fan-in'.")
        return {name: float(prior_std) for name, _ in model.named_parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        weight = getattr(layer, "weight", parameter)
        found[name] = 1 / math.sqrt(max(weight[0].numel(), 1))
    return found


def _for_ever(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    if iter(batches) is batches:  # a generator runs dry: its batches are kept
        yield from cycle(batches)
    while True:
        yield from batches
