"""Meta OOD learning on the real domains of an image folder, through a frozen backbone."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unseen.adaptation.meta_tasks import MetaTask, transform_tasks
from unseen.networks.frozen import FrozenBackbone
from unseen.papers.left_out_domains import image_folder
from unseen.papers.meta_ood_runs import after, meta_trained, perceptron, train
from unseen.shifts.opening import open_shift
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift
from unseen.shifts.task_streams import Labelled, domain_stream


def folder(seed: int, *, meta: int = 2000) -> dict[str, dict[str, float]]:
    """Real domains of an image folder, one half for training and the other as the stream, on a frozen backbone.

    Condition -> metric -> value for the conditions "erm-shifts" and "mol"; equal numbers of steps. A quarter of the
    classes is unfamiliar, another one plays the outliers of the training.
    """
    shift = open_shift(image_folder())
    generator = torch.Generator().manual_seed(derive_seed(seed, 6))
    domains = torch.randperm(len(shift.domains), generator=generator).tolist()
    classes = torch.randperm(len(shift.classes), generator=generator).tolist()
    seen, arriving = domains[: len(domains) // 2], domains[len(domains) // 2 :]
    quarter = max(1, len(classes) // 4)
    unfamiliar, outlying = classes[:quarter], classes[quarter : 2 * quarter]
    known = sorted(classes[2 * quarter :])
    rows = torch.isin(shift.domain, torch.tensor(seen)).nonzero().squeeze(1)
    preprocessing = FrozenBackbone.fit(shift, rows, os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0"))
    arrivals = _without(shift, outlying)
    streams = [
        domain_stream(
            arrivals, [shift.classes[i] for i in unfamiliar], preprocessing, [shift.domains[i] for i in arriving],
            seed=derive_seed(seed, draw),
        )
        for draw in range(5)
    ]  # fmt: skip
    parts = [_of_domain(shift, domain, known, outlying, preprocessing) for domain in seen]
    start = perceptron(seed, preprocessing.shape[0], len(known))
    joined = [torch.cat(tensors)[None] for tensors in zip(*((p.x, o) for p, o in parts), strict=True)]
    labels = torch.cat([part.y for part, _ in parts])
    train(start, joined[0], labels, joined[1], meta, 64, seed)
    longer = copy.deepcopy(start)
    train(longer, joined[0], labels, joined[1], meta, 64, derive_seed(seed, 7))
    samplers = [
        transform_tasks(*part, [lambda inputs: inputs], outliers=outliers, seed=derive_seed(seed, n))
        for n, (part, outliers) in enumerate(parts)
    ]
    networks = {"erm-shifts": longer, "mol": meta_trained(start, _in_turn(samplers), 2, meta)}
    return {condition: after(network, streams, 10) for condition, network in networks.items()}


def _in_turn(samplers: Sequence[Iterator[MetaTask]]) -> Iterator[MetaTask]:
    while True:
        yield from map(next, samplers)


def _without(shift: Shift, classes: Sequence[int]) -> Shift:
    """The shift without some classes, the others numbered anew in their order."""
    kept = torch.tensor([number for number in range(len(shift.classes)) if number not in classes])
    rest = shift.subset(torch.isin(shift.labels, kept).nonzero().squeeze(1))
    names = tuple(shift.classes[number] for number in kept.tolist())
    return replace(rest, labels=torch.searchsorted(kept, rest.labels), classes=names)


def _of_domain(
    shift: Shift, domain: int, known: Sequence[int], outlying: Sequence[int], preprocessing: Preprocessing
) -> tuple[Labelled, Tensor]:
    """Features of the known classes, numbered in their order, and of the outlying ones."""
    rows = (shift.domain == domain).nonzero().squeeze(1)
    own, others = (rows[torch.isin(shift.labels[rows], torch.tensor(part))] for part in (known, outlying))
    x, outliers = (preprocessing.encode(shift.take(part)) for part in (own, others))
    return Labelled(x, torch.searchsorted(torch.tensor(known), shift.labels[own])), outliers
