"""Parts of a bank that only some detectors need: labels, the linear head, well-classified examples."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Bank
from unseen.networks.bank import BLOCK

SUBJECT = "detector's training outputs"


def require_labels(bank: Bank) -> Tensor:
    """(N,) int64 labels, at least one of every class that the logits have; raises when there are none."""
    if bank.labels is None:
        raise InputError(SUBJECT, "hold no labels", "Fit on a labelled bank.")
    labels, classes = bank.labels, bank.logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            SUBJECT,
            f"have labels from {int(labels.min())} to {int(labels.max())}, but logits of {classes} classes",
            f"Number the classes from 0 to {classes - 1}.",
        )
    missing = (torch.bincount(labels, minlength=classes) == 0).nonzero().squeeze(1).tolist()
    if missing:
        raise InputError(SUBJECT, f"lack class number(s) {missing}", "Fit on examples of every class.")
    return labels


def require_rows(bank: Bank) -> None:
    """Raise when there is nothing to learn from."""
    if len(bank) == 0:
        raise InputError(SUBJECT, "are empty", "Fit on at least one example.")


def require_head(bank: Bank) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the linear head, float32, beside the features; raises when it is missing."""
    if bank.head is None:
        raise InputError(
            "bank", "has no linear head, whose weights the score reads", "Give Bank(..., head=network.head)."
        )
    weight = bank.head.weight.detach()
    if weight.shape[1] != bank.features.shape[1]:
        raise InputError(
            "bank",
            f"has features of size {bank.features.shape[1]}, but a head for size {weight.shape[1]}",
            "Give the features that enter the head.",
        )
    weight = weight.to(bank.features.device, torch.float32)
    bias = bank.head.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)


def named_rows(rows: Tensor) -> str:
    """Which of (N,) booleans are True, the first ten by number: "2 row(s): 3, 7"."""
    numbers = rows.nonzero().squeeze(1).tolist()
    return f"{len(numbers)} row(s): {', '.join(map(str, numbers[:10]))}{', ...' if len(numbers) > 10 else ''}"


def well_classified(bank: Bank) -> Tensor:
    """(N,) bool: examples that are classified correctly, and all those of a class of which none is."""
    labels = require_labels(bank)
    correct = bank.correct
    hits = torch.bincount(labels[correct], minlength=bank.logits.shape[1])
    return correct | (hits == 0)[labels]


def mean_feature(features: Tensor) -> Tensor:
    """(D,) float64 mean, summed in float64, block by block."""
    sums = [rows.double().sum(0) for rows in features.split(BLOCK)]  # sum(dtype=float64) is 7 times as slow
    return torch.stack(sums).sum(0) / len(features)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(C, D) float64 mean of each class, summed in float64."""
    sums = features.new_zeros(classes, features.shape[1], dtype=torch.float64)
    for rows, numbers in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
        sums.index_add_(0, numbers, rows.double())
    return sums / torch.bincount(labels, minlength=classes).double()[:, None]
