"""Classes held out at random: the unfamiliar examples of a fine-grained benchmark are its own other classes."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError


def holdout_split(labels: Tensor, n_id: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes to learn (n_id,) and classes that stay unknown, both int64 and ascending.

    labels  (N,) int64, of which the classes are taken
    n_id    number of classes to learn, at least 2 and fewer than there are
    seed    of the draw
    (Zhang et al. 2023, WACV, pages 5531-5540: fine-grained out-of-distribution classes)
    """
    classes = torch.as_tensor(labels).unique()
    if not 2 <= n_id < len(classes):
        raise InputError(
            "n_id", f"is {n_id} of {len(classes)} classes", f"Give a number from 2 to {len(classes) - 1}."
        )
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    return classes[order[:n_id]].sort().values, classes[order[n_id:]].sort().values
