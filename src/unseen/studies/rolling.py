"""Rolling evaluation: train on the first domains of a sequence, judge on those that come next, and go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.errors import InputError
from unseen.measures.fairness import demographic_parity_diff, equalized_odds_diff
from unseen.networks import Bank
from unseen.shifts import Shift, Split
from unseen.training import Learner, Predictor, fit

Fit = Callable[[Split, int], Predictor]


def rolling_evaluation(
    learner: Learner | Fit,
    shift: Shift,
    *,
    horizon: int = 1,
    first: int = 2,
    validation: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """A row a (number of domains trained on, domain judged): domains 1 to t are trained on, t + 1 to t + h judged.

    learner  or a function of a split and a seed that gives a predictor
    shift    its domains are in the order of time (see `unseen.shifts.sequence`)
    horizon  h, how many domains ahead are judged (fewer at the end)
    first    the least t
    Columns: trained (t), domain, ahead (1 to h), n, accuracy, loss and, for two classes and a shift with groups,
    demographic parity and equalized odds (differences of the rates of the second class between groups; NaN where
    a domain lacks what they compare). Raises InputError when no domain is left to judge.
    """
    if horizon < 1 or first < 1:
        raise InputError("horizon and first", f"are {horizon} and {first}", "Give whole numbers from 1.")
    if first >= len(shift.domains):
        raise InputError(
            "first", f"is {first}, but there are {len(shift.domains)} domains", "Leave one to be judged."
        )
    train: Fit = (
        (lambda split, seed: fit(learner, split, seed=seed)) if isinstance(learner, Learner) else learner
    )
    rows: list[dict[str, Any]] = []
    for count in range(first, len(shift.domains)):
        stop = min(count + horizon, len(shift.domains))
        until = shift.subset((shift.domain < stop).nonzero().squeeze(1))
        split = until.split(unseen=shift.domains[count:stop], validation=validation, seed=seed)
        predictor = train(split, seed)
        for index in range(count, stop):
            judged = until.subset((until.domain == index).nonzero().squeeze(1))
            if len(judged):
                common = {"trained": count, "domain": shift.domains[index], "ahead": index - count + 1}
                rows.append({**common, **_judged(predictor.outputs(judged), judged)})
    return pd.DataFrame(rows)


def _judged(bank: Bank, shift: Shift) -> dict[str, float]:
    right = bank.predictions == shift.labels
    loss = torch.nn.functional.cross_entropy(bank.logits, shift.labels)
    found = {"n": len(shift), "accuracy": float(right.double().mean()), "loss": float(loss)}
    if shift.group is not None and len(shift.classes) == 2:
        found["demographic parity"] = _or_nan(demographic_parity_diff, bank.predictions, shift.group)
        found["equalized odds"] = _or_nan(equalized_odds_diff, bank.predictions, shift.labels, shift.group)
    return found


def _or_nan(measure: Callable[..., float], *arguments: Any) -> float:
    """A measure, or NaN for a domain in which a group has no example to be measured on."""
    try:
        return measure(*arguments)
    except InputError:
        return float(np.nan)
