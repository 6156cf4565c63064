"""What a model takes images of each class for, estimated from few labelled ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError


def estimate_transition(
    probs: Tensor,
    labels: Tensor,
    per_class: int = 10,
    stratify: Literal["confidence", "none"] = "confidence",
    normalize: Literal["rows", "minmax"] = "rows",
) -> Tensor:
    """T (C, C): row c is the model's mean probabilities on images whose true class is c, P(predicted | true).

    probs      (N, C) of a small labelled set; labels (N,) int64
    per_class  images of each class that count; all of a class that has fewer
    stratify   "confidence" takes them evenly over the whole range of the model's confidence, "none" the first ones
    normalize  "rows" leaves rows that sum to one; "minmax" scales the whole to [0, 1], as the official code does
               (which leaves every order as it is)
    Raises `InputError` for rows that are no probabilities and for a class without an image.
    Machine Vision Therapy (Huang et al. 2024), stage 1.
    """
    check_probabilities("probs", probs)
    if (
        labels.shape != probs.shape[:1]
        or not len(labels)
        or int(labels.min()) < 0
        or int(labels.max()) >= probs.shape[1]
    ):
        raise InputError(
            "labels", "do not fit the probabilities", f"Give (N,) numbers below {probs.shape[1]}."
        )
    if per_class < 1:
        raise InputError("per_class", f"is {per_class}", "Give a whole number from 1.")
    if stratify not in ("confidence", "none") or normalize not in ("rows", "minmax"):
        raise InputError(
            "stratify, normalize",
            f"are {stratify!r}, {normalize!r}",
            "Use confidence or none, rows or minmax.",
        )
    rows = []
    for c in range(probs.shape[1]):
        own = probs[labels == c]
        if not len(own):
            raise InputError(f"class {c}", "has no labelled image", "Give at least one image of each class.")
        if stratify == "confidence":
            own = own[own.amax(1).argsort(stable=True)]
            own = own[torch.linspace(0, len(own) - 1, min(per_class, len(own))).round().long()]
        rows.append(own[:per_class].mean(0))
    transition = torch.stack(rows)
    if normalize == "minmax":
        low, high = transition.min(), transition.max()
        transition = (transition - low) / (high - low).clamp(min=1e-12)
    return transition


def check_probabilities(subject: str, rows: Tensor) -> None:
    """Raise `InputError` unless `rows` (N, C) are not below zero and each sums to one."""
    if rows.dim() != 2 or not bool((rows >= 0).all()) or not bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        raise InputError(
            subject, "has rows that are no probabilities", "Give (N, C), each row summing to one."
        )
