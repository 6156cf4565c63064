"""k-means on the unit sphere, with and without labels of some classes: what category discovery must beat."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.networks.prototypes import require_unit


class Clusters(NamedTuple):
    """Unit centres (K, D), and the index of the nearest one for each unlabelled example (N,)."""

    centres: Tensor
    assigned: Tensor


def k_means(
    features: Tensor, count: int, generator: torch.Generator, *, rounds: int = 100, starts: int = 5
) -> Clusters:
    """Spherical k-means of unit features (N, D): `count` centres, the best of several k-means++ starts."""
    empty, no_labels = features[:0], torch.zeros(0, dtype=torch.int64, device=features.device)
    return semi_supervised_k_means(
        features, empty, no_labels, 0, count, generator, rounds=rounds, starts=starts
    )


def semi_supervised_k_means(
    features: Tensor,
    labelled: Tensor,
    labels: Tensor,
    n_old: int,
    n_new: int,
    generator: torch.Generator,
    *,
    rounds: int = 100,
    starts: int = 5,
) -> Clusters:
    """Spherical k-means in which labelled examples always belong to the centre of their class (Vaze et al. 2022,
    arXiv 2201.02609).

    features  (N, D) unit features without labels; labelled (M, D) with labels (M,) in [0, n_old)
    n_new     further centres, begun by k-means++ among the unlabelled
    The start whose examples, all of them, are nearest to their centres is returned.
    """
    count = n_old + n_new
    require_unit(features, features.shape[1])
    require_unit(labelled, features.shape[1], "labelled features")
    if count < 1 or n_new < 0:
        raise InputError("number of clusters", f"is {count}, {n_new} of them new", "Give one at least.")
    if len(features) + len(labelled) < count:
        problem = f"are {len(features) + len(labelled)}, for {count} clusters"
        raise InputError("examples", problem, "Give more examples than clusters.")
    if sorted(labels.unique().tolist()) != list(range(n_old)):
        raise InputError(
            "labels", f"are {labels.unique().tolist()[:10]}", f"Give every class from 0 to {n_old - 1}."
        )
    of_class = labels[:, None] == torch.arange(n_old, device=labels.device)
    anchors = normalize(of_class.T.to(features.dtype) @ labelled, dim=1)
    best, quality = None, -torch.inf
    for _ in range(starts):
        centres = _spread(features, anchors, n_new, generator)
        for _ in range(rounds):
            given = torch.cat([labels, (features @ centres.T).argmax(1)])
            moved = _means(torch.cat([labelled, features]), given, centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        cosines = features @ centres.T
        found = float(cosines.amax(1).sum() + (labelled * centres[labels]).sum())
        if found > quality:
            best, quality = Clusters(centres, cosines.argmax(1)), found
    assert best is not None
    return best


def _means(points: Tensor, given: Tensor, centres: Tensor) -> Tensor:
    """Unit means of the points of each centre; one without any stays."""
    sums = torch.zeros_like(centres).index_add(0, given, points)
    empty = torch.bincount(given, minlength=len(centres)) == 0
    return torch.where(empty[:, None], centres, normalize(sums, dim=1))


def _spread(features: Tensor, anchors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Anchors and `count` of the features, drawn with the squared distance to what there is (k-means++)."""
    centres = anchors
    for _ in range(count):
        if len(centres):
            weights = (1 - (features @ centres.T).amax(1)).clamp(min=1e-9)
        else:
            weights = torch.ones_like(features[:, 0])
        drawn = torch.multinomial(weights.cpu(), 1, generator=generator).to(features.device)
        centres = torch.cat([centres, features[drawn]])
    return centres
