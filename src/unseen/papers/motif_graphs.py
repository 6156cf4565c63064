"""Graphs made by rule: a motif that decides the class, and another that only comes along with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unseen.shifts import Shift

MOTIF = 6
"""Nodes of a motif."""
WHEEL = [(0, i) for i in range(1, 6)] + [(i, i % 5 + 1) for i in range(1, 6)]
STAR = [(0, i) for i in range(1, 6)]


CYCLE = [(i, (i + 1) % MOTIF) for i in range(MOTIF)]
PAIRS = {
    "wheel or cycle": (CYCLE, WHEEL),
    "wheel or wheel without a spoke": (WHEEL[1:], WHEEL),
    "triangle or squares": ([*CYCLE, (0, 3)], [*CYCLE, (0, 2)]),
}
"""Motifs of labels 0 and 1. The last two have the same degrees: a cycle whose chord cuts off a triangle, or
halves it into two squares."""


def motif_graphs(
    labels: np.ndarray,
    stars: np.ndarray,
    sizes: tuple[int, int],
    nodes: int,
    generator: np.random.Generator,
    pair: str,
) -> dict[str, Tensor]:
    """Padded graphs, one a label: a random tree, the label's motif and, where `stars` says so, a star of six.

    labels, stars  (N,) 0 or 1
    sizes          least and greatest number of nodes of the tree, in which every node hangs on one that is
                   drawn with a chance proportional to its degree
    nodes          to pad to
    pair           the two motifs that decide the class, a key of `PAIRS`
    The only feature of a node is its degree. Gives float "nodes" (N, n, 1), "adjacency" (N, n, n), "mask" (N, n).
    """
    adjacency, mask = (
        np.zeros((len(labels), nodes, nodes), np.float32),
        np.zeros((len(labels), nodes), np.float32),
    )
    for links, real, label, star in zip(adjacency, mask, labels, stars, strict=True):
        size = int(generator.integers(sizes[0], sizes[1] + 1))
        ends = [0]
        for node in range(1, size):
            parent = ends[generator.integers(len(ends))]
            links[node, parent] = links[parent, node] = 1
            ends += [node, parent]
        total = size
        for motif in [PAIRS[pair][int(label)], *([STAR] if star else [])]:
            for a, b in [(total + a, total + b) for a, b in motif] + [
                (total + 1, int(generator.integers(size)))
            ]:
                links[a, b] = links[b, a] = 1
            total += MOTIF
        real[:total] = 1
    dense = torch.from_numpy(adjacency)
    return {"nodes": dense.sum(2, keepdim=True), "adjacency": dense, "mask": torch.from_numpy(mask)}


def labels_and_stars(
    count: int, agree: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) balanced labels, and stars that agree with them with the given chance."""
    labels = np.arange(count) % 2
    return labels, np.where(generator.random(count) < agree, labels, 1 - labels)


def shift_of(parts: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Tensor]]], name: str) -> Shift:
    """A shift from domain name -> (labels, stars, graphs); the star is the group attribute."""
    return Shift(
        name=name,
        kind="graph",
        inputs={
            key: torch.cat([part[2][key] for part in parts.values()])
            for key in ("nodes", "adjacency", "mask")
        },
        labels=torch.from_numpy(np.concatenate([part[0] for part in parts.values()])),
        domain=torch.arange(len(parts)).repeat_interleave(
            torch.tensor([len(part[0]) for part in parts.values()])
        ),
        classes=("0", "1"),
        domains=tuple(parts),
        group=torch.from_numpy(np.concatenate([part[1] for part in parts.values()])),
        groups=("no star", "star"),
    )
