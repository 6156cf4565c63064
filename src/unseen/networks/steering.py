"""Steering: let unlabelled test inputs choose, or mix, the heads that answer them (DRM, Zhang et al. 2023).

The gap of a head is an estimate, without labels, of how badly it fits an example; lower is better. What decides
is the mean gap over a unit: with a unit of one example an overconfident wrong head wins too often.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.networks.combining import (
    Unit,
    averaged_over,
    choose_by_oracle,
    entropy_scores,
    inverse_power_weights,
    mixed_probabilities,
)
from unseen.networks.domain_heads import DomainHeads
from unseen.networks.hypotheses import Hypotheses
from unseen.networks.modes import evaluating

Gap = Callable[[Tensor, Tensor], Tensor]
"""A user's estimate: features (B, D) and logits (K, B, C) to gaps (K, B)."""

BY = ("entropy", "discriminator", "prototype", "uniform", "shared")
METRICS = ("l2", "l1", "cosine")


@dataclass(frozen=True)
class Steered:
    """What steering answers.

    probabilities  (B, C), of the chosen head or the mixture
    weights        (K, B) of the heads for each example; they sum to one over K
    logits         (K, B, C) of every head
    gaps           (J, B) of the first J heads, mean over the unit of each example: lower is a better fit
    """

    probabilities: Tensor
    weights: Tensor
    logits: Tensor
    gaps: Tensor

    @property
    def predictions(self) -> Tensor:
        return self.probabilities.argmax(-1)

    @property
    def head(self) -> Tensor:
        """(B,) the head that counts most for each example."""
        return self.weights.argmax(0)

    def adaptivity_gap(self, labels: Tensor) -> float:
        """Accuracy of the head that is best for these labels (B,), less that of the answers: for analysis only."""
        best = choose_by_oracle(self.logits, labels)
        used = (self.predictions == labels.to(self.predictions.device)).double().mean()
        return best.accuracy[best.index] - float(used)


@dataclass(frozen=True)
class Steering:
    """How heads are chosen.

    by      "entropy" of each head's predictions in nats, "discriminator" (-log of the domain's probability),
            "prototype" (distance from the domain's mean features), "uniform" (the mean of all heads' probabilities),
            "shared" (the head of all domains), or a function of features and logits, see `Gap`
    unit    what one choice is for: the "batch", a "group" of it, or each "example"
    gamma   None chooses the head with the least gap; a number from 0 mixes probabilities with weights gap^-gamma
            (0: uniform). Gaps that are logarithms or similarities, and a user's, weigh exp(-gamma gap) instead
    metric  of prototypes: "l2", "l1" or "cosine" (1 - similarity)

    Entropy chooses among all heads, the shared one included; discriminator and prototypes among those of domains.
    The only example of a unit has no mean: entropy gives way to prototypes there, with a warning.
    """

    by: str | Gap = "entropy"
    unit: Unit = "batch"
    gamma: float | None = None
    metric: Literal["l2", "l1", "cosine"] = "l2"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("by", self.by, BY),
            ("unit", self.unit, ("batch", "group", "example")),
            ("metric", self.metric, METRICS),
        ):
            if value not in known and not (name == "by" and callable(value)):
                raise InputError(f"{name} {value!r} of steering", "is not known", nearest(str(value), known))
        if self.gamma is not None and not 0 <= self.gamma < math.inf:
            raise InputError("gamma", f"is {self.gamma}", "Give a finite number from 0, or None.")

    def answer(self, network: Hypotheses, x: Any, group: Tensor | None = None) -> Steered:
        """Answer inputs x (B, ...) as the network reads them, in evaluation mode and without gradients.

        group  (B,) int64, any numbers, for unit "group": the patient, camera or site that an example is of
        """
        with evaluating(network), torch.no_grad():
            return self.steer(network, network.featurizer(x), group)

    def steer(self, network: Hypotheses, features: Tensor, group: Tensor | None = None) -> Steered:
        """Answer features (B, D) of the network."""
        logits = network.head.all_logits(features)
        unit = unit_of(self.unit, features, group)
        gaps = averaged_over(self.unit, self.gaps(network, features, logits), unit)
        alone = torch.bincount(unit)[unit] == 1
        return self.combine(network, features, logits, gaps, alone)

    def gaps(self, network: Hypotheses, features: Tensor, logits: Tensor) -> Tensor:
        """(J, B) gap of the first J heads for each example: of all K, or of the M that belong to a domain."""
        if callable(self.by):
            found = self.by(features, logits)
            if found.shape != logits.shape[:2]:
                problem = f"gives {tuple(found.shape)} for logits {tuple(logits.shape)}"
                raise InputError("gap function", problem, "Give (heads, examples).")
        elif self.by == "discriminator":
            found = -torch.log_softmax(_discriminator(network)(features), -1).T
        elif self.by == "prototype":
            found = prototype_gaps(features, _prototypes(network), self.metric)
        elif self.by == "entropy":
            found = entropy_scores(logits, "example")
        else:  # uniform and shared weigh heads without looking
            found = torch.zeros(logits.shape[:2], dtype=logits.dtype, device=logits.device)
        if not torch.isfinite(found).all():
            heads = (~torch.isfinite(found)).any(1).nonzero().flatten().tolist()
            raise InputError(
                "gaps", f"are not finite for heads {heads}", "Look for NaN in inputs or weights."
            )
        return found

    def combine(
        self, network: Hypotheses, features: Tensor, logits: Tensor, gaps: Tensor, alone: Tensor
    ) -> Steered:
        """Answer by the mean gaps (J, B) of the units; alone (B,) bool: an example whose unit has no other."""
        weights = self._weights(network, gaps)
        if self.by == "entropy" and self.unit != "example" and bool(alone.any()):
            warnings.warn(
                "steering by entropy has a single example to choose a head by"
                + (": it goes by prototypes instead" if isinstance(network, DomainHeads) else "")
                + ". Give more examples of one domain at a time.",
                UnseenWarning,
                stacklevel=4,
            )
            if isinstance(network, DomainHeads):
                nearby = replace(self, by="prototype")
                instead = nearby._weights(network, nearby.gaps(network, features, logits))
                weights = torch.where(alone, instead, weights)
        return Steered(mixed_probabilities(logits, weights), weights, logits, gaps)

    def _weights(self, network: Hypotheses, gaps: Tensor) -> Tensor:
        """(K, B) weights that sum to one, over the heads that have a gap: the others' are zero."""
        if self.by == "uniform":
            return torch.full_like(gaps, 1 / len(gaps))
        if self.by == "shared":
            _require_domain_heads(network)
            weights = torch.zeros_like(gaps)
            weights[-1] = 1
            return weights
        if self.gamma is None:
            weights = nn.functional.one_hot(gaps.argmin(0), len(gaps)).T.to(gaps.dtype)
        elif self.by == "entropy" or (self.by == "prototype" and self.metric != "cosine"):
            weights = inverse_power_weights(gaps, self.gamma)
        else:
            weights = torch.softmax(-self.gamma * gaps, 0)
        return nn.functional.pad(weights, (0, 0, 0, network.count - len(gaps)))


def prototype_gaps(features: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """(M, B) distances of features (B, D) from prototypes (M, D); for "cosine" 1 - similarity, so less is closer."""
    if metric == "cosine":
        return 1 - nn.functional.normalize(prototypes, dim=-1) @ nn.functional.normalize(features, dim=-1).T
    return torch.cdist(prototypes, features, p=1.0 if metric == "l1" else 2.0)


def unit_of(unit: Unit, features: Tensor, group: Tensor | None) -> Tensor:
    """(B,) int64 from 0: the unit of each example."""
    count = len(features)
    if not count:
        raise InputError("inputs", "are none", "Steering needs examples to choose by.")
    if unit == "batch":
        return torch.zeros(count, dtype=torch.int64, device=features.device)
    if unit == "example":
        return torch.arange(count, device=features.device)
    if group is None or group.shape != (count,):
        given = "is not given" if group is None else f"has shape {tuple(group.shape)}"
        raise InputError("group", given, f'With unit="group" give a number for each example, ({count},).')
    return torch.unique(group.to(features.device), return_inverse=True)[1]


class SteeringStream:
    """Steering of a stream: the choice for a group rests on all of its examples so far, the present batch included.

    A group is what the user says, a patient or a camera, and not what happens to arrive together. Of each group
    only the sums of its gaps and their number are kept.
    """

    def __init__(self, network: Hypotheses, steering: Steering = Steering()):
        self.network, self.steering = network, replace(steering, unit="group")
        self._totals: dict[Hashable, tuple[Tensor, int]] = {}

    @torch.no_grad()
    def answer(self, x: Any, groups: Sequence[Hashable]) -> Steered:
        """Answer inputs x (B, ...) as the network reads them; groups names the group of each."""
        with evaluating(self.network):
            features = self.network.featurizer(x)
        names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
        if not len(features) or len(groups) != len(features):
            problem = f"are {len(groups)} for {len(features)} examples"
            raise InputError("groups", problem, "Name one for each example, of at least one.")
        unit = torch.tensor([names[name] for name in groups], device=features.device)
        logits = self.network.head.all_logits(features)
        gaps = self.steering.gaps(self.network, features, logits)
        sums = gaps @ nn.functional.one_hot(unit).to(gaps.dtype)
        for name, new, count in zip(names, sums.T, torch.bincount(unit).tolist(), strict=True):
            total, number = self._totals.get(name, (torch.zeros_like(new), 0))
            self._totals[name] = total + new, number + count
        known = [self._totals[name] for name in names]
        means = torch.stack([total / number for total, number in known], 1)[:, unit]
        alone = torch.tensor([number == 1 for _, number in known], device=features.device)[unit]
        return self.steering.combine(self.network, features, logits, means, alone)


def predict_stream(
    network: Hypotheses,
    batches: Iterable[tuple[Any, Sequence[Hashable]]],
    steering: Steering = Steering(),
) -> Iterator[Steered]:
    """Answer batches of (inputs, groups) one after the other, see `SteeringStream`."""
    stream = SteeringStream(network, steering)
    for x, groups in batches:
        yield stream.answer(x, groups)


def _require_domain_heads(network: Hypotheses) -> DomainHeads:
    if not isinstance(network, DomainHeads):
        raise InputError(
            f"network {type(network).__name__}", "has no heads of domains", "Train it with the objective drm."
        )
    return network


def _discriminator(network: Hypotheses) -> nn.Module:
    found = _require_domain_heads(network).discriminator
    if found is None:
        raise InputError(
            "steering by discriminator", "finds none in the network", "Train with drm(discriminator=64)."
        )
    return found


def _prototypes(network: Hypotheses) -> Tensor:
    network = _require_domain_heads(network)
    if not bool((network.seen > 0).all()):
        missing = (network.seen == 0).nonzero().flatten().tolist()
        raise InputError("prototypes", f"of domains {missing} are not known", "Train the network with drm.")
    return network.prototypes
