"""One penalty that makes domains look alike from the head; V-REx, IGA, Fishr, CORAL and Hessian alignment."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective
from unseen.objectives.head_autograd import head_statistics_by_autograd
from unseen.objectives.head_statistics import (
    HeadStatistics,
    covariance_discrepancy,
    head_statistics,
)
from unseen.objectives.hutchinson import hutchinson_diagonal
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch

Reference = Literal["mean", "pooled", "pairwise"]


def discrepancy(
    values: Tensor,
    share: Tensor,
    reference: Tensor | None = None,
    *,
    coordinates: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Mean over present domains of |S_e - S|^2: a scalar, zero when S is the mean and one domain is present.

    values       (D, ...) a statistic of each domain
    share        (D,) 1 / (number of present domains), or 0 for a domain without examples
    reference    (...) S; None for the mean over the present domains
    coordinates  whether the squared norm sums or averages over the statistic's coordinates
    """
    if len(values) < 2:
        raise InputError("values", f"hold {len(values)} domain(s)", "Matching needs at least two domains.")
    flat = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    centre = share @ flat if reference is None else reference.flatten()
    squares = (flat - centre).square()
    distances = squares.sum(1) if coordinates == "sum" else squares.mean(1)
    return distances @ share


def require_apart(model: Network) -> None:
    """Raise `InputError` when the head shares a parameter with the featurizer: derivatives in the head alone would
    leave half of what it does out."""
    of_head = {id(parameter): name for name, parameter in model.head.named_parameters()}
    shared = [of_head[id(p)] for p in model.featurizer.parameters() if id(p) in of_head]
    if shared:
        raise InputError("head", f"shares its {shared[0]} with the featurizer", "Give it weights of its own.")


def pairwise_factor(present: Tensor) -> Tensor:
    """Mean squared distance over pairs of domains divided by that to their mean: 2 E / (E - 1) for E domains.

    sum_{i<j} |x_i - x_j|^2 = E sum_i |x_i - mean|^2, so no pair has to be formed.
    """
    count = present.sum()
    return 2 * count / (count - 1).clamp(min=1)


@objectives.register(
    "vrex",
    summary="Equal risks: penalty on the variance of the domains' losses",
    paper="Krueger et al. 2021, arXiv 2003.00688",
    preset={"loss": 1.0, "penalty_weight": 10.0, "warmup_steps": 100, "warmup_weight": 1.0},
    search={"penalty_weight": ("log", 1e-1, 1e5), "warmup_steps": ("choice", [0, 50, 100, 200])},
)
@objectives.register(
    "iga",
    summary="Equal gradients of the head in every domain",
    paper="Koyama & Yamaguchi 2020, arXiv 2008.01883",
    preset={"gradient": 1.0, "penalty_weight": 1000.0},
    search={"penalty_weight": ("log", 1e1, 1e5)},
)
@objectives.register(
    "fishr",
    summary="Equal variances of the head's per-example gradients",
    paper="Rame et al. 2022, arXiv 2109.02934",
    preset={
        "gradient_variance": 1.0,
        "coordinates": "mean",
        "moving_average": 0.95,
        "penalty_weight": 1000.0,
        "warmup_steps": 100,
    },
    search={
        "penalty_weight": ("log", 1e1, 1e4),
        "warmup_steps": ("choice", [0, 50, 100, 200]),
        "moving_average": ("uniform", 0.90, 0.99),
    },
)
@objectives.register(
    "coral",
    summary="Equal means and covariances of the features",
    paper="Sun & Saenko 2016, arXiv 1607.01719",
    preset={"feature_mean": 1.0, "feature_covariance": 1.0, "reference": "pairwise", "coordinates": "mean"},
    search={"penalty_weight": ("log", 1e-1, 1e1)},
)
@objectives.register(
    "hgp",
    summary="Equal gradients and Hessian-gradient products of the head",
    paper="Hemati et al. 2023, arXiv 2308.11778",
    preset={
        "hessian_gradient": 1e-4,
        "gradient": 5e-3,
        "reference": "pooled",
        "detach_reference": True,
    },
    search={"hessian_gradient": ("log", 1e-5, 1e-3), "gradient": ("log", 1e-3, 1e-1)},
)
@objectives.register(
    "hutchinson",
    summary="Equal gradients and Hessian diagonals of the head (exact, or Hutchinson's estimate)",
    paper="Hemati et al. 2023, arXiv 2308.11778",
    preset={
        "hessian_diagonal": 1e-3,
        "gradient": 5e-3,
        "reference": "pooled",
        "detach_reference": True,
    },
    search={"hessian_diagonal": ("log", 1e-4, 1e-1), "gradient": ("log", 1e-4, 1e-1)},
)
class DomainMatch(Objective):
    """Mean of the domains' risks + weight * sum over statistics of (factor * discrepancy).

    loss, gradient, gradient_variance, hessian_gradient, hessian_diagonal, feature_mean, feature_covariance
                      factor of each statistic (see `head_statistics`); 0 leaves it out
    reference         what a domain is compared with: "mean" of the domains' statistics, the statistic of the
                      "pooled" risk (another thing for products such as H g and for variances), or "pairwise",
                      the mean over pairs of domains
    coordinates       "sum" or "mean" over the coordinates of a statistic
    detach_reference  no gradient through the reference; only matters for "pooled", elsewhere it cancels
    moving_average    in [0, 1): decay m of a moving average of the gradient variances. The statistic is then
                      v + m / (1 - m) * average, whose gradient does not shrink with m (Rame et al. 2022)
    probes            None for the exact Hessian diagonal, or the number of Hutchinson probes (300 in the
                      paper's code), drawn anew at each step as a function of `probe_seed` and the step
    penalty_weight, warmup_steps, warmup_weight, rescale_loss
                      see `PenaltySchedule`

    Presets have the defaults of DomainBed and of the papers' code, except: warm-ups there are 500 (V-REx) and
    1500 (Fishr) of 5000 steps, here 100; IGA there acts on all parameters, here on the head; the published
    search range of Hutchinson lies far above its published default, here it surrounds it. Gradients and
    curvatures grow with the features: compare the logged `penalty` with `risk` before trusting a factor.
    """

    needs_domains = True
    average: Tensor
    average_before: Tensor

    def __init__(
        self,
        loss: float = 0.0,
        gradient: float = 0.0,
        gradient_variance: float = 0.0,
        hessian_gradient: float = 0.0,
        hessian_diagonal: float = 0.0,
        feature_mean: float = 0.0,
        feature_covariance: float = 0.0,
        reference: Reference = "mean",
        coordinates: Literal["sum", "mean"] = "sum",
        detach_reference: bool = False,
        moving_average: float = 0.0,
        probes: int | None = None,
        probe_seed: int = 0,
        penalty_weight: float = 1.0,
        warmup_steps: int = 0,
        warmup_weight: float = 0.0,
        rescale_loss: bool = False,
    ):
        super().__init__()
        factors = {
            "loss": loss,
            "gradient": gradient,
            "gradient_variance": gradient_variance,
            "hessian_gradient": hessian_gradient,
            "hessian_diagonal": hessian_diagonal,
            "feature_mean": feature_mean,
            "feature_covariance": feature_covariance,
        }
        for name, factor in factors.items():
            if not (math.isfinite(factor) and factor >= 0):
                raise InputError(f"factor of {name}", f"is {factor}", "Give a finite number from 0.")
        for name, value, choices in (
            ("reference", reference, ("mean", "pooled", "pairwise")),
            ("coordinates", coordinates, ("sum", "mean")),
        ):
            if value not in choices:
                raise InputError(f"{name} {value!r}", "is not known", nearest(value, choices))
        if not 0 <= moving_average < 1:
            raise InputError("moving_average", f"is {moving_average}", "Give a decay from 0 to below 1.")
        if probes is not None and probes < 1:
            raise InputError("probes", f"is {probes}", "Give a whole number from 1, or None for exact.")
        self.factors = {name: factor for name, factor in factors.items() if factor > 0}
        if not self.factors:
            raise InputError("domain match", "has no statistic to match", "Give one of the factors above 0.")
        self.reference, self.coordinates, self.detach_reference = reference, coordinates, detach_reference
        self.moving_average, self.probes, self.probe_seed = moving_average, probes, probe_seed
        self.averages = moving_average > 0 and "gradient_variance" in self.factors
        self._apart = False
        self.schedule = PenaltySchedule(penalty_weight, warmup_steps, warmup_weight, rescale_loss)

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        if self.averages:
            # of the batches before the last one, and including it: a repeated batch must see the former again
            for name in ("average_before", "average"):
                self.register_buffer(name, torch.zeros(domains, classes, features + 1))

    @property
    def needs_features(self) -> bool:  # type: ignore[override]
        return set(self.factors) <= {"feature_mean", "feature_covariance"}

    @property
    def carries_weights(self) -> bool:  # type: ignore[override]
        return (
            "gradient_variance" not in self.factors
        )  # it counts a gradient of weight zero, and that it is zero

    def resets_optimizer_at(self, step: int) -> bool:
        return self.schedule.switches_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not self._apart:
            require_apart(model)
            self._apart = True
        features = model.featurizer(batch.x)
        logits = model.head(features)
        with torch.autocast(features.device.type, enabled=False):
            statistics = self._statistics(model.head, features, logits, batch)
            parts = {name: self._discrepancy(name, statistics, features, batch) for name in self.factors}
        penalty = functools.reduce(torch.add, [factor * parts[n] for n, factor in self.factors.items()])
        risk = statistics.over_present(statistics.values["loss"])
        loss = self.schedule.loss(risk, penalty, batch.step)
        if len(parts) > 1:
            loss.parts |= parts
        return loss

    def _statistics(self, head: nn.Module, features: Tensor, logits: Tensor, batch: Batch) -> HeadStatistics:
        order = {"loss", *self.factors}
        if self.probes is not None:
            order.discard("hessian_diagonal")
        if self.reference != "pooled":  # compared without being formed, see `_discrepancy`
            order.discard("feature_covariance")
        data = batch.y, batch.domain, batch.domains
        if isinstance(head, nn.Linear):
            pooled = self.reference == "pooled"
            found = head_statistics(features, logits, *data, order=order, weight=batch.weight, pooled=pooled)
        elif self.probes is not None or self.averages:
            raise InputError(
                "head",
                f"is {type(head).__name__}, but probes and moving averages need closed forms",
                "Use a linear head, or probes=None and moving_average=0.",
            )
        else:
            found = head_statistics_by_autograd(head, features, *data, order=order, weight=batch.weight)
        if self.probes is not None and "hessian_diagonal" in self.factors:
            seed = self.probe_seed + batch.step
            diagonal, _ = hutchinson_diagonal(
                features, logits, *data[1:], probes=self.probes, seed=seed, weight=batch.weight
            )
            found.values["hessian_diagonal"] = diagonal
            found.pooled["hessian_diagonal"] = found.over_present(diagonal)
        if self.averages:
            self._add_moving_average(found, batch.repeat)
        return found

    def _add_moving_average(self, statistics: HeadStatistics, repeat: bool) -> None:
        variance, decay = statistics.values["gradient_variance"], self.moving_average
        if not repeat:
            seen = statistics.rows.present.view(-1, 1, 1) > 0
            moved = torch.lerp(variance.detach().to(self.average.dtype), self.average, decay)
            self.average_before.copy_(self.average)
            self.average.copy_(torch.where(seen, moved, self.average))
        earlier = decay / (1 - decay) * self.average_before.clone()
        statistics.values["gradient_variance"] = variance + earlier
        if self.reference == "pooled":
            pooled = statistics.pooled["gradient_variance"] + statistics.over_present(earlier)
            statistics.pooled["gradient_variance"] = pooled

    def _discrepancy(self, name: str, statistics: HeadStatistics, features: Tensor, batch: Batch) -> Tensor:
        if name == "feature_covariance" and self.reference != "pooled":
            value = covariance_discrepancy(features, statistics.rows, batch.weight)
            if self.coordinates == "mean":
                value = value / features.shape[1] ** 2
        else:
            reference = statistics.pooled[name] if self.reference == "pooled" else None
            if reference is not None and self.detach_reference:
                reference = reference.detach()
            value = discrepancy(
                statistics.values[name], statistics.rows.share, reference, coordinates=self.coordinates
            )
        return pairwise_factor(statistics.rows.present) * value if self.reference == "pairwise" else value
