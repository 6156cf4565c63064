"""What several hypotheses say together: pure functions of their logits (K, B, C).

A score says how badly a hypothesis fits each example, lower is better; its unit is explicit, because the same
score averaged over a batch, a group or nothing chooses differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.sampling import derive_seed

Unit = Literal["batch", "group", "example"]


# ---- mixtures ----


def mean_probabilities(logits: Tensor) -> Tensor:
    """(B, C) mean over the hypotheses of their probabilities."""
    return torch.softmax(logits, -1).mean(0)


def mixed_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """(B, C) mixture of the hypotheses' probabilities; weights (K,) or (K, B) that sum to one over K."""
    weights = weights.unsqueeze(-1) if weights.dim() == 1 else weights
    return (weights.unsqueeze(-1) * torch.softmax(logits, -1)).sum(0)


def inverse_power_weights(scores: Tensor, gamma: float) -> Tensor:
    """(K, B) weights proportional to score^-gamma; gamma 0 is the mean, a large one the best hypothesis alone."""
    return torch.softmax(-gamma * scores.clamp(min=1e-6).log(), 0)


# ---- choices without labels ----


def entropy_scores(logits: Tensor, unit: Unit, group: Tensor | None = None) -> Tensor:
    """(K, B) entropy in nats of each hypothesis, averaged over the unit that an example belongs to."""
    log_p = torch.log_softmax(logits, -1)
    return averaged_over(unit, -(log_p.exp() * log_p).sum(-1), group)


def averaged_over(unit: Unit, scores: Tensor, group: Tensor | None = None) -> Tensor:
    """(K, B) scores, each replaced by the mean over its unit. group (B,) int64 from 0, for unit "group"."""
    if unit == "example":
        return scores
    if unit == "batch":
        return scores.mean(1, keepdim=True).expand_as(scores)
    if unit != "group":
        raise InputError(f"unit {unit!r}", "is not known", "Use batch, group or example.")
    if group is None:
        raise InputError("group", "is not given", 'With unit="group" give a number for each example, (B,).')
    member = torch.nn.functional.one_hot(group).to(scores.dtype)
    return (scores @ member / member.sum(0).clamp(min=1))[:, group]


def picked(logits: Tensor, index: Tensor | int) -> Tensor:
    """(B, C) logits of the hypothesis that `index`, one for all or (B,), names for each example."""
    if isinstance(index, int):
        return logits[index]
    return logits[index, torch.arange(logits.shape[1], device=logits.device)]


# ---- disagreement ----


def disagreement(logits: Tensor) -> Tensor:
    """(B,) total L1 distance of the probabilities over all pairs of hypotheses (DivDis, section 3.3)."""
    p = torch.softmax(logits, -1)
    first, second = torch.triu_indices(len(p), len(p), 1, device=p.device)
    return (p[first] - p[second]).abs().sum(-1).sum(0)


def disagreement_matrix(logits: Tensor) -> Tensor:
    """(K, K) share of examples on which two hypotheses predict different classes."""
    predictions = logits.argmax(-1)
    return (predictions.unsqueeze(0) != predictions.unsqueeze(1)).float().mean(-1)


# ---- choices by labels ----


@dataclass(frozen=True)
class Choice:
    """A hypothesis and how it was chosen.

    index     of the chosen hypothesis; the first of several equally good ones
    accuracy  of each hypothesis on the labels that decided
    by        "oracle" means that the labels which judge have decided: it measures what the hypotheses hold, and
              is no result of a method
    queried   positions of the examples whose labels were asked for
    """

    index: int
    accuracy: tuple[float, ...]
    by: Literal["validation", "queries", "oracle"]
    queried: tuple[int, ...] = ()

    @property
    def peeks(self) -> bool:
        return self.by == "oracle"


def choose_by_validation(logits: Tensor, labels: Tensor) -> Choice:
    """The most accurate hypothesis on labelled validation examples; logits (K, N, C), labels (N,)."""
    return _best(logits, labels, "validation")


def choose_by_oracle(logits: Tensor, labels: Tensor) -> Choice:
    """The most accurate hypothesis on the very examples that judge it: for analysis only."""
    return _best(logits, labels, "oracle")


def disambiguate(
    logits: Tensor,
    oracle: Callable[[Tensor], Tensor],
    budget: int,
    strategy: Literal["disagreement", "random"] = "disagreement",
    seed: int = 0,
) -> Choice:
    """Ask for the labels of `budget` examples and choose the hypothesis that has most of them right.

    logits    (K, N, C) on examples without labels
    oracle    gives the labels (budget,) of the positions it is asked for
    strategy  "disagreement" asks for the examples on which the hypotheses differ most, "random" for any
    DivDis (Lee et al. 2023), section 3.3.
    """
    count = logits.shape[1]
    if not 1 <= budget <= count:
        raise InputError("budget", f"is {budget}", f"Give a number of labels from 1 to {count}.")
    generator = torch.Generator().manual_seed(derive_seed(seed))
    order = torch.randperm(count, generator=generator).to(logits.device)
    if strategy == "disagreement":
        order = order[disagreement(logits)[order].argsort(descending=True, stable=True)]  # ties at random
    elif strategy != "random":
        raise InputError(f"strategy {strategy!r}", "is not known", "Use disagreement or random.")
    asked = order[:budget]
    return _best(logits[:, asked], oracle(asked), "queries", tuple(asked.tolist()))


def _best(
    logits: Tensor,
    labels: Tensor,
    by: Literal["validation", "queries", "oracle"],
    queried: tuple[int, ...] = (),
) -> Choice:
    if not len(labels):
        raise InputError("labels", "are none", "A choice by labels needs at least one.")
    accuracy = (logits.argmax(-1) == labels.to(logits.device)).float().mean(-1)
    return Choice(int(accuracy.argmax()), tuple(accuracy.tolist()), by, queried)
