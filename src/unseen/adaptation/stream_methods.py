"""Baselines for streams of labelled supports: neighbours among the supports, and adaptation without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.adaptation.base import Adaptation
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import Spec, detectors
from unseen.shifts.task_streams import Labelled


class SupportNeighbours:
    """Classes and familiarity by distance to the support, without gradients: the memory of `adapt` is all it learns.

    features  inputs (N, ...) to features (N, D), such as the featurizer of a trained network
    by        "prototypes": mean feature of each class on the unit sphere (Snell et al. 2017, arXiv 1703.05175);
              "neighbours": the k nearest support examples, of which most decide (the nearest of them at a draw)
    k         neighbours
    The score is minus the distance to the nearest prototype, or to the k-th neighbour.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        *,
        by: Literal["prototypes", "neighbours"] = "prototypes",
        k: int = 1,
    ):
        if by not in ("prototypes", "neighbours"):
            raise InputError("by", f"is {by!r}", "Use 'prototypes' or 'neighbours'.")
        if k < 1:
            raise InputError("k", f"is {k}", "Give a number of neighbours from 1.")
        self.features, self.by, self.k = features, by, k
        self._points: Tensor | None = None
        self._labels = torch.zeros(0, dtype=torch.int64)

    def adapt(self, support: Labelled, reset: bool = False) -> Self:
        """Remember a support; `reset` forgets those before."""
        points, labels = self._encoded(support.x), support.y.to(support.x.device)
        if not reset and self._points is not None:
            points, labels = torch.cat([self._points, points]), torch.cat([self._labels, labels])
        if self.by == "neighbours" and self.k > len(points):
            raise InputError("k", f"is {self.k} with {len(points)} support examples", "Choose fewer.")
        self._points, self._labels = points, labels
        return self

    def predict(self, x: Tensor) -> Tensor:
        distances, classes = self._distances(x)
        if self.by == "prototypes":
            return classes[distances.argmin(1)]
        nearest = classes[distances.topk(self.k, largest=False).indices]
        votes = torch.nn.functional.one_hot(nearest, int(classes.max()) + 1)
        # at a draw, the sooner the better: the weights of all ranks together are less than a vote
        weights = 1 + (self.k - torch.arange(self.k, device=x.device)) / (self.k + 1) ** 2
        return (votes * weights.view(-1, 1)).sum(1).argmax(1)

    def score(self, x: Tensor) -> Tensor:
        distances, _ = self._distances(x)
        k = 1 if self.by == "prototypes" else self.k
        return -distances.kthvalue(k, 1).values

    @torch.no_grad()
    def _encoded(self, x: Tensor) -> Tensor:
        return normalize(self.features(x), dim=1)

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (N, P) to points, and the points' classes (P,)."""
        if self._points is None:
            raise InputError("SupportNeighbours", "has no support yet", "Call adapt(support) first.")
        if self.by == "neighbours":
            return torch.cdist(self._encoded(x), self._points), self._labels
        classes = self._labels.unique()
        means = torch.stack([self._points[self._labels == label].mean(0) for label in classes])
        return torch.cdist(self._encoded(x), normalize(means, dim=1)), classes


class WithoutLabels:
    """An `Adaptation` (Tent, T3A, ...) along the same streams: it learns from the inputs of the supports alone.

    adaptation  made of a network; methods that need training inputs must be prepared
    detector    a score of the logits that it answers, by name
    Test inputs are answered as the method answers a batch, and what it learns from them is forgotten: ID and OOD
    tests meet the same state.
    """

    def __init__(self, adaptation: Adaptation, *, detector: str | Spec = "msp"):
        self.adaptation, self.detector = adaptation, detectors.build(detector)

    def adapt(self, support: Labelled, reset: bool = False) -> Self:
        if reset:
            self.adaptation.reset()
        self.adaptation.adapt(support.x)
        return self

    def predict(self, x: Tensor) -> Tensor:
        return self._answer(x).argmax(1)

    def score(self, x: Tensor) -> Tensor:
        logits = self._answer(x)
        return self.detector.score(Bank(logits, logits))

    def _answer(self, x: Tensor) -> Tensor:
        state = self.adaptation.state_dict()
        logits = self.adaptation.adapt(x)
        self.adaptation.load_state_dict(state)
        return logits
