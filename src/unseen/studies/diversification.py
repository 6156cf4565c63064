"""Would diversification help? An audit of methods over the unlabelled data, the learner and the number of heads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.networks.combining import (
    choose_by_oracle,
    choose_by_validation,
    disagreement_matrix,
    mean_probabilities,
)
from unseen.networks.hypotheses import Hypotheses
from unseen.shifts import Shift, Split
from unseen.shifts.spurious_ratio import rows_at_ratio, spurious_ratio
from unseen.training import Learner, fit
from unseen.training.data import TrainingData

COLUMNS = {
    "best": "accuracy of the hypothesis that is best on the examples that judge: an oracle's choice",
    "selected": "accuracy on one half of the hypothesis that is best on the other half, mean of both ways",
    "mean": "mean accuracy of the hypotheses",
    "ensemble": "accuracy of the mean of their probabilities",
    "answer": "accuracy of the network as its objective left it",
    "worst group": "accuracy of the selected hypothesis in its worst (label, attribute) group",
    "agreement": "share of unlabelled examples on which two hypotheses predict the same, mean over pairs",
}


def diversification_audit(
    shift: Shift,
    learners: Mapping[str, Learner],
    *,
    train: str | Sequence[str],
    judge: str,
    pool: str,
    ratios: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    count: int = 1200,
    seed: int = 0,
) -> pd.DataFrame:
    """A row a (learner, spurious ratio of the unlabelled data): what its hypotheses know of the label.

    shift     its `group` is the spurious attribute, numbered like the labels
    learners  by name; their objectives give several hypotheses (divdis, d-bat, ...)
    train     domain(s) to train on; judge: domain that judges; pool: domain from which `count` unlabelled
              examples are drawn at each of the `ratios` (the labels serve to draw them, not to train)
    Columns: method, ratio, hypotheses (K), and `COLUMNS`. After Benoit et al. 2024, arXiv 2312.16313.
    """
    if shift.group is None or len(shift.groups) != len(shift.classes):
        raise InputError(
            f"shift {shift.name!r}", "has no group for each class", "Give the spurious attribute as group."
        )
    rows = []
    for ratio in ratios:
        split = split_at_ratio(
            shift, train=train, judge=judge, pool=pool, ratio=ratio, count=count, seed=seed
        )
        data = TrainingData(split)
        for name, learner in learners.items():
            network = fit(learner, split, seed=seed, data=data).network
            if not isinstance(network, Hypotheses):
                raise InputError(
                    f"learner {name!r}", "gives one hypothesis", "Audit objectives such as divdis or d-bat."
                )
            found = judged(network, data)
            rows.append({"method": name, "ratio": ratio, "hypotheses": network.count, **found})
    return pd.DataFrame(rows)


def split_at_ratio(
    shift: Shift,
    *,
    train: str | Sequence[str],
    judge: str,
    pool: str,
    ratio: float,
    count: int,
    seed: int = 0,
) -> Split:
    """Train on some domains, judge on another, with `count` unlabelled examples of a third at a spurious ratio.

    Warns when the ratio is that of the training examples: nothing that fits the labels can then differ.
    """
    assert shift.group is not None
    inside = (shift.domain == shift.domains.index(pool)).nonzero().squeeze(1)
    chosen = inside[rows_at_ratio(shift.labels[inside], shift.group[inside], ratio, count, seed)]
    trained = (train,) if isinstance(train, str) else tuple(train)
    out = [name for name in shift.domains if name not in trained]
    whole = shift.split(out, unlabelled=chosen, seed=seed)
    own = spurious_ratio(shift.labels[whole.train], shift.group[whole.train])
    if abs(own - ratio) < 1e-9:
        warnings.warn(
            f"unlabelled examples at ratio {ratio:g} are correlated as the training examples are: hypotheses "
            "that fit the labels cannot differ on them",
            UnseenWarning,
            stacklevel=2,
        )
    judges = whole.unseen[shift.domain[whole.unseen] == shift.domains.index(judge)]
    return Split(
        shift, whole.train, whole.validation, judges, whole.train_domains, (judge,), seed, whole.unlabelled
    )


@torch.inference_mode()
def judged(network: Hypotheses, data: TrainingData) -> dict[str, float]:
    """The numbers of `COLUMNS` for a network's hypotheses, on the unseen rows of the data."""
    split = data.split
    logits, labels = all_logits(network, data, split.unseen), split.shift.labels[split.unseen]
    assert split.shift.group is not None
    group = labels * len(split.shift.groups) + split.shift.group[split.unseen]
    first = torch.zeros(len(labels), dtype=torch.bool)
    first[torch.randperm(len(labels), generator=torch.Generator().manual_seed(split.seed))[::2]] = True
    selected, worst = [], []
    for chosen_on, judged_on in ((first, ~first), (~first, first)):
        index = choose_by_validation(logits[:, chosen_on], labels[chosen_on]).index
        right = logits[index, judged_on].argmax(-1) == labels[judged_on]
        selected.append(float(right.float().mean()))
        own = group[judged_on]
        worst.append(min(float(right[own == value].float().mean()) for value in own.unique().tolist()))
    oracle = choose_by_oracle(logits, labels)
    differ = disagreement_matrix(all_logits(network, data, split.unlabelled))
    pairs = torch.triu_indices(network.count, network.count, 1)
    return {
        "best": oracle.accuracy[oracle.index],
        "selected": sum(selected) / 2,
        "mean": sum(oracle.accuracy) / len(oracle.accuracy),
        "ensemble": float((mean_probabilities(logits).argmax(-1) == labels).float().mean()),
        "answer": float(data.bank(network, split.unseen).correct.float().mean()),
        "worst group": sum(worst) / 2,
        "agreement": float(1 - differ[pairs[0], pairs[1]].mean()),
    }


def all_logits(network: Hypotheses, data: TrainingData, rows: Tensor) -> Tensor:
    """(K, N, C) logits of every hypothesis for rows of the data, in evaluation mode, on the CPU."""
    device: Any = next(network.parameters()).device
    with torch.inference_mode():
        features = data.bank(network, rows, device).features
        return network.head.all_logits(features.to(device)).float().cpu()
