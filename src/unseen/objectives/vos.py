"""VOS: virtual outliers from the tails of class-wise Gaussians of the features."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.class_queue import ClassQueue
from unseen.objectives.divdis import check_weights
from unseen.objectives.penalty import from_step
from unseen.objectives.targets import likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch

RIDGE = 1e-4
"""Added to the diagonal of the covariance, as in the published code; relative to its mean where that is above 1."""


def tail_draws(draws: int, select: int, size: int, generator: torch.Generator) -> Tensor:
    """(select, size) of `draws` standard normal vectors those with the largest norms.

    Under N(m, L L') the density of m + L z falls with |z| alone, so these are the least likely of as many draws
    from any Gaussian.
    """
    noise = torch.randn(draws, size, generator=generator, device=generator.device)
    return noise[noise.square().sum(1).topk(select).indices]


def gaussian_tails(queue: ClassQueue, noise: Tensor) -> Tensor:
    """(C, select, D) m_c + L z for noise z (select, D): class means m_c and a common covariance L L'."""
    filled = queue.filled.unsqueeze(-1)
    means = (queue.values * filled).sum(1) / filled.sum(1).clamp(min=1)
    centred = ((queue.values - means.unsqueeze(1)) * filled).flatten(0, 1)
    covariance = centred.T @ centred / filled.sum().clamp(min=1)
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1)
    covariance = covariance + ridge * torch.eye(len(covariance), device=noise.device, dtype=covariance.dtype)
    factor = torch.linalg.cholesky(covariance)
    return means.unsqueeze(1) + noise.to(factor.dtype) @ factor.T


@objectives.register(
    "vos",
    summary="Virtual outliers from the tails of class-wise Gaussians of features get a high energy",
    paper="Du et al. 2022, arXiv 2202.01197",
    search={"weight": ("log", 1e-2, 1.0), "draws": ("choice", [1000, 10_000])},
)
class VOS(Objective):
    """Cross-entropy + weight * logistic loss of telling features of examples from virtual outliers by energy.

    weight        0.1 in the paper
    queue         latest features of each class that means and covariance are of; at least a batch
    draws, select of `draws` draws of each class the `select` least likely are its virtual outliers
    warmup_steps  updates with cross-entropy alone; the paper begins after 40 of 100 epochs
    Energies are -log sum_k w_k exp(logits)_k with trained w_k >= 0, and log-odds an affine function of them. Its
    slope is free in the published code and of one sign here: a free one may learn that outliers have the lower
    energies, and would turn the score around. Classes not seen yet have no outliers.
    """

    queue: ClassQueue

    def __init__(
        self,
        weight: float = 0.1,
        queue: int = 1000,
        draws: int = 10_000,
        select: int = 1,
        warmup_steps: int = 0,
    ):
        super().__init__()
        check_weights(weight)
        if not 1 <= select <= draws:
            raise InputError("select", f"is {select}", f"Give a number from 1 to draws, {draws}.")
        if queue < 2:
            raise InputError("queue", f"is {queue}", "Give at least 2 features of a class.")
        self.weight, self.size, self.draws, self.select = weight, queue, draws, select
        self.warmup_steps = warmup_steps

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.features = features
        self.queue = ClassQueue(classes, self.size, features)
        self.energy_weights = nn.Parameter(torch.rand(classes))
        self.slope, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch's `auxiliary` is the noise (select, D) that becomes virtual outliers."""
        noise = tail_draws(self.draws, self.select, self.features, generator)
        return replace(batch, auxiliary=noise.to(batch.domain.device))

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not isinstance(batch.auxiliary, Tensor) or batch.auxiliary.shape[-1] != self.features:
            raise InputError("objective 'vos'", "got a batch without noise", "Call prepare first.")
        features = model.featurizer(batch.x)
        logits = model.head(features)
        risk = example_losses(logits, batch).mean()
        if not batch.repeat:
            self.queue.push(features.detach(), likeliest_class(batch.y))
        with torch.autocast(features.device.type, enabled=False):
            outliers = gaussian_tails(self.queue, batch.auxiliary).to(full_precision(logits).dtype)
            known = self._familiarity(full_precision(logits))
            unknown = self._familiarity(model.head(outliers))
            there = (self.queue.held > 0).to(known.dtype).unsqueeze(1)
            losses = nn.functional.softplus(-known).sum() + (nn.functional.softplus(unknown) * there).sum()
            uncertainty = losses / (len(known) + there.sum() * self.select)
        weight = from_step(self.warmup_steps, batch.step, self.weight, 0.0)
        return Loss(risk + weight * uncertainty, {"risk": risk, "uncertainty": uncertainty})

    def _familiarity(self, logits: Tensor) -> Tensor:
        """Log-odds of being no outlier: they fall with the weighted energy."""
        weights = torch.relu(self.energy_weights).clamp(min=1e-12).log()
        return self.slope.exp() * (logits + weights).logsumexp(-1) + self.offset
