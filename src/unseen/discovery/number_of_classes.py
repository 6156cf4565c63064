"""How many classes are there? A score of each number, from short runs with as many prototypes.

The paper of ProtoGCD proposes a prototype score whose formula is not published with its code. What is here is a
reconstruction from its description: compactness against overlap of prototypes, and accuracy on labels held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.discovery.clustering import semi_supervised_k_means
from unseen.errors import InputError


@dataclass(frozen=True)
class NumberOfClasses:
    """total: the estimated number of classes, old ones included; scores: of every number that was tried."""

    total: int
    scores: dict[int, float]


def prototype_score(
    unlabelled: Tensor, labelled: Tensor, labels: Tensor, total: int, generator: torch.Generator
) -> float:
    """Silhouette of prototypes plus accuracy on held-out labels, in a short run with `total` prototypes
    [reconstructed].

    The run is semi-supervised k-means that is told every other label. The silhouette of an example is 1 - its
    distance to the nearest prototype over that to the second nearest (distances 1 - cosine), in [0, 1]: high when
    clusters are compact and apart; the plain difference of the two would always favour few prototypes. The accuracy
    is that of the nearest prototype for the labels not told.
    """
    n_old = int(labels.max()) + 1
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels.cpu()[order].argsort(stable=True)]
    told, held = order[::2], order[1::2]
    if len(labels[told].unique()) < n_old or not len(held):
        raise InputError("labelled", "have a class of one example", "Give two examples of every old class.")
    pool = torch.cat([unlabelled, labelled[held]])
    clusters = semi_supervised_k_means(
        pool, labelled[told], labels[told], n_old, total - n_old, generator, starts=3
    )
    nearest, second = (1 - pool @ clusters.centres.T).clamp(min=1e-9).topk(2, 1, largest=False).values.T
    accuracy = (clusters.assigned[len(unlabelled) :] == labels[held]).double().mean()
    return float((1 - nearest / second).double().mean() + accuracy)


def estimate_num_classes(
    unlabelled: Tensor, labelled: Tensor, labels: Tensor, *, largest: int | None = None, seed: int = 0
) -> NumberOfClasses:
    """The number with the best `prototype_score`, searched by bracketing: coarsely, then around the best.

    unlabelled (N, D), labelled (M, D) unit features, labels (M,) of old classes, numbered from 0
    largest    number of classes that is tried, default four times the old ones
    """
    if not len(unlabelled):
        raise InputError("unlabelled", "are none", "Give examples among which there may be new classes.")
    if not len(labels):
        raise InputError("labelled", "are none", "Give two examples of every old class.")
    n_old = int(labels.max()) + 1
    first, last = max(2, n_old + 1), 4 * n_old if largest is None else largest
    last = min(last, len(unlabelled))
    if last < first:
        raise InputError("largest", f"is {last}", f"Give {first} at least: one more than the old classes.")
    scores: dict[int, float] = {}

    def best_of(numbers: range) -> int:
        for total in numbers:
            if total not in scores:
                generator = torch.Generator().manual_seed(seed)
                scores[total] = prototype_score(unlabelled, labelled, labels, total, generator)
        return max(scores, key=lambda total: scores[total])

    step = max(1, math.isqrt(last - first))
    near = best_of(range(first, last + 1, step))
    total = best_of(range(max(first, near - step), min(last, near + step) + 1))
    return NumberOfClasses(total, dict(sorted(scores.items())))
