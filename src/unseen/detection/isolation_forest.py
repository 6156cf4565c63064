"""Isolation forest: how many random cuts it takes to set a feature apart. Fitted by scikit-learn, kept as arrays."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from unseen.detection.bank_parts import require_rows
from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 4096
"""Rows that walk down all trees at a time."""


@detectors.register(
    "isolation-forest",
    summary="Minus 2 to the minus of the mean depth at which random cuts set a feature apart",
    paper="Liu et al. 2008, ICDM",
    search={"trees": ("integer", 50, 300)},
)
class IsolationForest(Detector):
    """`trees` trees, each grown on `samples` training features drawn with `seed` (all, where there are fewer)."""

    left: Tensor
    right: Tensor
    feature: Tensor
    threshold: Tensor
    depth: Tensor
    scale: Tensor

    def __init__(self, trees: int = 100, samples: int = 256, seed: int = 0):
        super().__init__()
        if trees < 1 or samples < 2:
            raise InputError("trees, samples", f"are {trees}, {samples}", "Give 1 and 2 at least.")
        self.trees, self.samples, self.seed = trees, samples, seed

    def fit(self, bank: Bank) -> Self:
        from sklearn.ensemble import IsolationForest as Forest

        require_rows(bank)
        features = require_finite(bank.features, "features").float()
        samples = min(self.samples, len(features))
        forest = Forest(n_estimators=self.trees, max_samples=samples, random_state=self.seed)
        forest.fit(features.cpu().numpy())
        trees = [each.tree_ for each in forest.estimators_]
        size = max(tree.node_count for tree in trees)

        def together(values: list[Any]) -> Tensor:
            """(trees, nodes) of all trees, the smaller ones filled up with zeros."""
            return torch.stack([torch.from_numpy(np.pad(v, (0, size - len(v)))) for v in values])

        leaf = [tree.children_left < 0 for tree in trees]
        own = [np.arange(tree.node_count) for tree in trees]  # a leaf leads to itself
        left, right, feature = (
            together(
                [
                    np.where(at, stay, getattr(tree, name))
                    for tree, at, stay in zip(trees, leaf, own, strict=True)
                ]
            )
            for name in ("children_left", "children_right", "feature")
        )
        at_leaf = together(leaf)
        device = features.device
        self.keep(
            bank,
            left=left.to(device),
            right=right.to(device),
            feature=torch.where(at_leaf, 0, feature).to(device),
            threshold=together([_below(tree.threshold) for tree in trees]).to(device),
            depth=together([_depths(tree) for tree in trees]).float().to(device),
            scale=torch.tensor(
                max(_path_length(np.array([samples]))[0], 1e-12), dtype=torch.float32, device=device
            ),
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        features = require_finite(bank.features, "features").float()
        trees = torch.arange(len(self.left), device=features.device)
        deepest, found = (
            math.ceil(math.log2(self.samples)),
            [],
        )  # trees grow no deeper; leaves lead to themselves
        for points in [features] if torch.compiler.is_exporting() else features.split(BLOCK):
            node = torch.zeros_like(points[:, :1], dtype=torch.int64).expand(-1, len(trees))
            for _ in range(deepest):
                goes_left = points.gather(1, self.feature[trees, node]) <= self.threshold[trees, node]
                node = torch.where(goes_left, self.left[trees, node], self.right[trees, node])
            found.append(-torch.exp2(-self.depth[trees, node].mean(1) / self.scale))
        return torch.cat(found)


def _below(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 numbers up to the thresholds: comparisons of float32 features stay what they are."""
    rounded = threshold.astype(np.float32)
    return np.where(rounded > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(
        np.float32
    )


def _depths(tree: Any) -> np.ndarray:
    """Of each node: the cuts above it, and those that would set apart what it holds, on average."""
    depth = np.zeros(tree.node_count)
    for node in range(tree.node_count):  # parents come before their children
        for child in (tree.children_left[node], tree.children_right[node]):
            if child >= 0:
                depth[child] = depth[node] + 1
    return depth + _path_length(tree.n_node_samples)


def _path_length(samples: np.ndarray) -> np.ndarray:
    """Mean depth of an unsuccessful search among `samples` in a binary search tree (Liu et al., equation 1)."""
    n = np.maximum(samples, 3).astype(np.float64)
    long = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(samples <= 1, 0.0, np.where(samples == 2, 1.0, long))
