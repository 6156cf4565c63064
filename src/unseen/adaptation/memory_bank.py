"""A memory of recent, sure examples with all classes in it (Yuan et al. 2023, category-balanced sampling)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Item = dict[str, Any]
"""One remembered example: input x (without batch dimension), label, uncertainty (nats), age in examples."""


def staleness(
    age: Tensor,
    uncertainty: Tensor,
    capacity: int,
    classes: int,
    age_weight: float,
    uncertainty_weight: float,
) -> Tensor:
    """How dispensable an example is: age_weight sigmoid(age / capacity) + uncertainty_weight entropy / ln C.

    Yuan et al. 2023, arXiv 2303.13899, section 3.2.
    """
    return age_weight * torch.sigmoid(age / capacity) + uncertainty_weight * uncertainty / math.log(classes)


def remember(
    bank: list[Item],
    item: Item,
    *,
    capacity: int,
    classes: int,
    age_weight: float = 1.0,
    uncertainty_weight: float = 1.0,
) -> None:
    """Offer an example (age 0) to the bank, in place, and let all that is in it grow older by one.

    While its class has less than capacity / classes places taken, it enters; in a full bank it takes the place of
    the stalest example of the largest classes, otherwise of its own class; nobody leaves for a staler newcomer.
    """
    counts = [0] * classes
    for known in bank:
        counts[known["label"]] += 1
    own_is_small = counts[item["label"]] < capacity / classes
    if own_is_small and len(bank) < capacity:
        bank.append(item)
    else:
        crowded = [c for c in range(classes) if counts[c] == max(counts)] if own_is_small else [item["label"]]
        places = [i for i, known in enumerate(bank) if known["label"] in crowded]
        ages, uncertainties = (
            torch.tensor([float(bank[i][name]) for i in places] + [float(item[name])])
            for name in ("age", "uncertainty")
        )
        scores = staleness(ages, uncertainties, capacity, classes, age_weight, uncertainty_weight)
        worst = int(scores[:-1].argmax())
        if scores[worst] > scores[-1]:
            del bank[places[worst]]
            bank.append(item)
    for known in bank:
        known["age"] += 1
