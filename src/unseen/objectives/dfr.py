"""DFR: keep the features of ERM, refit the last layer where the groups are balanced."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.objectives.erm import ERM
from unseen.objectives.example_weights import attribute_groups, balanced_rows
from unseen.objectives.stages import Stage
from unseen.registry import objectives

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""Inverse regularisation strengths C that are tried, as in the paper's code."""


@objectives.register(
    "dfr",
    summary="ERM, then the last layer refitted on group-balanced examples, averaged over refits",
    paper="Kirichenko et al. 2022, arXiv 2204.02937",
)
class DFR(ERM):
    """Deep feature reweighting. Features are standardised by the training rows; each refit draws as many
    examples of every group as the smallest has; the heads' weights are averaged.

    rows      "validation": DFR^Val of the paper, which needs examples that the features were not trained on;
              "train": DFR^Tr
    refits    number of balanced subsets: 20 in the paper's code for validation rows, 10 for training rows
    strength  C, the inverse strength of the L1 penalty, or None: the one of `STRENGTHS` with the best worst
              group on held-out rows (a half of the validation rows, or all of them for rows="train")

    Groups are the label crossed with the group attribute, or with the domain where there is none. With
    validation rows the accuracy in validation is that of examples that were fitted: compare such learners by
    held-out domains.
    """

    def __init__(
        self,
        rows: Literal["validation", "train"] = "validation",
        refits: int | None = None,
        strength: float | None = None,
    ):
        super().__init__()
        if rows not in ("validation", "train"):
            raise InputError("rows", f"are {rows!r}", nearest(rows, ("validation", "train")))
        if refits is not None and refits < 1:
            raise InputError("refits", f"is {refits}", "Give a whole number from 1, such as 10.")
        if strength is not None and not strength > 0:
            raise InputError("strength", f"is {strength}", "Give a positive number, such as 0.1.")
        self.rows, self.strength = rows, strength
        self.refits = refits if refits is not None else {"validation": 20, "train": 10}[rows]

    def begin(self, stage: Stage) -> None:
        if len(stage.labels(stage.rows(self.rows)).unique()) < stage.classes:
            problem = "lack a class, so the last layer cannot be refitted on them"
            raise InputError(f"{self.rows} rows", problem, "Take rows='train', or keep more for validation.")

    def finish(self, stage: Stage) -> None:
        bank = stage.bank(stage.network, stage.rows("train"))
        mean, deviation = bank.features.mean(0), bank.features.std(0, correction=0)
        scale = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))

        def examples(role: Literal["train", "validation"]) -> tuple[Tensor, Tensor, Tensor]:
            rows = stage.rows(role)
            features = bank.features if role == "train" else stage.bank(stage.network, rows).features
            return (features - mean) / scale, stage.labels(rows), attribute_groups(stage, rows)

        generator = stage.generator()
        fitted = examples(self.rows)
        if len(fitted[1].unique()) < stage.classes:
            raise InputError(
                f"{self.rows} rows",
                "lack a class, so its last layer cannot be refitted",
                "Take rows='train'.",
            )
        strength = self.strength
        if strength is None:
            part, held = fitted, examples("validation")
            if self.rows == "validation":
                held, part = _halves(fitted, generator)
            strength = best_strength(part, held, stage.classes, generator)
        weight, bias = averaged_heads(fitted, stage.classes, strength, self.refits, generator)
        head = stage.network.head
        with torch.no_grad():
            head.weight.copy_(weight / scale)
            head.bias.copy_(bias - (weight / scale) @ mean)


Examples = tuple[Tensor, Tensor, Tensor]
"""Features (N, D), labels (N,), groups (N,)."""


def _halves(examples: Examples, generator: torch.Generator) -> tuple[Examples, Examples]:
    """Two halves with a share of every group, so that no small group is missing in one of them."""
    _, labels, groups = examples
    order = torch.randperm(len(labels), generator=generator)
    order = order[groups[order].argsort(stable=True)]
    first, second = order[::2], order[1::2]
    if len(labels[second].unique()) < len(labels.unique()):  # a class with a single example
        first = second = order
    return tuple(t[first] for t in examples), tuple(t[second] for t in examples)  # type: ignore[return-value]


def balanced_head(
    examples: Examples, classes: int, strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of an L1-penalised logistic regression on a group-balanced subset."""
    from sklearn.linear_model import LogisticRegression

    features, labels, groups = examples
    chosen = balanced_rows(groups, generator)
    x, y = features[chosen].double().numpy(), labels[chosen].numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    solver = "liblinear" if classes == 2 else "saga"
    model = LogisticRegression(
        l1_ratio=1.0, C=strength, solver=solver, random_state=seed, max_iter=200 if classes == 2 else 1000
    )
    model.fit(x, y)
    slopes, offsets = np.asarray(model.coef_), np.asarray(model.intercept_)
    if classes == 2:  # one logit, the difference of two
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
    return torch.from_numpy(slopes).float(), torch.from_numpy(offsets).float()


def averaged_heads(
    examples: Examples, classes: int, strength: float, refits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean weight and bias of `refits` balanced heads."""
    heads = [balanced_head(examples, classes, strength, generator) for _ in range(refits)]
    return torch.stack([w for w, _ in heads]).mean(0), torch.stack([b for _, b in heads]).mean(0)


def best_strength(part: Examples, held: Examples, classes: int, generator: torch.Generator) -> float:
    """The strength whose head, fitted on `part`, has the best accuracy in the worst group of `held`."""
    features, labels, groups = held
    start, scores = generator.get_state(), []
    for strength in STRENGTHS:
        generator.set_state(start)  # all strengths see the same subset
        weight, bias = balanced_head(part, classes, strength, generator)
        correct = ((features @ weight.T + bias).argmax(1) == labels).float()
        scores.append(min(float(correct[groups == group].mean()) for group in groups.unique()))
    return STRENGTHS[int(np.argmax(scores))]
