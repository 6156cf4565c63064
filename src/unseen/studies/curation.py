"""Training on what selectors choose: does less, but better chosen, data do as well here, and better elsewhere?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pandas as pd
import torch

from unseen.curation.base import By
from unseen.errors import InputError
from unseen.registry import Spec, selectors
from unseen.shifts import Split
from unseen.studies.scoring import seeded_selector, training_pool
from unseen.training import Hardware, fit
from unseen.training.data import TrainingData
from unseen.training.learner import Learner

FULL = "full"
"""Name of training on everything, which every study has beside the selectors."""


def curation_study(
    split: Split,
    chosen_by: Sequence[str | Spec],
    learner: Learner,
    *,
    keep: float = 0.3,
    by: By | None = "domain",
    equal: Literal["steps", "epochs"] = "steps",
    seeds: int = 3,
    hardware: Hardware = Hardware(),
) -> pd.DataFrame:
    """Score the training rows by a model trained on all of them, train anew on what each selector keeps, judge.

    chosen_by  registered selectors, "donod(don_direction='min')"; beside them, "full" is trained on all rows
    learner    what scores, and what is trained
    by         the share `keep` is kept of each "domain" or "class", or of all (None)
    equal      "steps": training on a part is as long as on all; "epochs": it is `keep` times as long, so that an
               example is seen as often. Where both are asked for, a gain is not one of shorter training

    Returns a tidy table: seed, selector, role ("validation", of the training domains, or "unseen"), domain,
    examples (trained on), steps, accuracy. Classes that lose all their examples are told as an InputError.
    """
    if equal not in ("steps", "epochs"):
        raise InputError(f"equal {equal!r}", "is not known", "Give 'steps' or 'epochs'.")
    if seeds < 1:
        raise InputError("seeds", f"is {seeds}", "Give one at least.")
    specs = {str(name): Spec.of(name) for name in chosen_by}
    for spec in specs.values():
        selectors.build(spec)  # a misspelt name is told before anything is trained
    part = _shorter(learner, keep) if equal == "epochs" else learner
    data = TrainingData(split, learner.backbone)
    pool = training_pool(data)
    table: list[dict[str, object]] = []
    for seed in range(seeds):
        scorer = fit(learner, split, seed=seed, data=data, hardware=hardware).network
        table += _judged(data, scorer, FULL, seed, learner.steps)
        for name, spec in specs.items():
            selector = seeded_selector(spec, seed)
            rows = split.train[selector.select(selector.fit(scorer, pool), keep, by)]
            chosen = replace(split, train=rows)
            chosen.require_every_class()
            kept = TrainingData(chosen, learner.backbone)
            network = fit(part, chosen, seed=seed, data=kept, hardware=hardware).network
            table += _judged(kept, network, name, seed, part.steps)
    return pd.DataFrame(table)


def _shorter(learner: Learner, keep: float) -> Learner:
    """The learner, trained `keep` times as long."""
    return learner.replace(steps=max(1, round(keep * learner.steps)))


def _judged(
    data: TrainingData, network: torch.nn.Module, selector: str, seed: int, steps: int
) -> list[dict[str, object]]:
    found = []
    for role in ("validation", "unseen"):
        bank = data.bank(network, role)  # type: ignore[arg-type]
        assert bank.domain is not None
        for index in bank.domain.unique().tolist():
            found.append({
                "seed": seed,
                "selector": selector,
                "role": role,
                "domain": bank.domains[index],
                "examples": len(data.split.train),
                "steps": steps,
                "accuracy": float(bank.correct[bank.domain == index].double().mean()),
            })  # fmt: skip
    return found
