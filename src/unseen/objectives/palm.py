"""PALM: several prototypes a class, assigned by optimal transport, for features that tell what is unfamiliar."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.measures.sinkhorn import sinkhorn
from unseen.networks.prototypes import PrototypeBank, prototype_separation, require_unit
from unseen.objectives.base import Loss
from unseen.objectives.targets import likeliest_class
from unseen.objectives.two_views import TwoViews
from unseen.registry import objectives
from unseen.shifts import Batch

ROUNDS = 3
"""Of Sinkhorn's algorithm, as in the published code."""


class PALMLoss(nn.Module):
    """Negative log-likelihood of features under a mixture of prototypes + `weight` times a contrast of prototypes.

    bank       prototypes with a momentum; every call moves them
    k          prototypes that an example keeps, at most `per_class` ("reciprocal neighbours")
    tau        temperature of the likelihood
    eps        regularisation of the transport
    weight     of the contrast between prototypes
    proto_tau  its temperature
    Lu et al. 2024: the weights multiply the logits, an expected log-likelihood rather than that of a mixture. The
    contrast reaches the features through the moving average only, with 1 - momentum of its gradient: with the
    paper's momentum of 0.999 its weight hardly matters.
    """

    def __init__(
        self,
        bank: PrototypeBank,
        k: int = 5,
        tau: float = 0.1,
        eps: float = 0.05,
        weight: float = 1.0,
        proto_tau: float = 0.5,
    ):
        super().__init__()
        if not 1 <= k <= bank.per_class:
            raise InputError("k", f"is {k}", f"The bank has {bank.per_class} prototypes a class.")
        for name, value in (("tau", tau), ("eps", eps), ("proto_tau", proto_tau)):
            if not value > 0:
                raise InputError(name, f"is {value}", "Give a positive number.")
        if not weight >= 0:
            raise InputError("weight", f"is {weight}", "Give a number from 0.")
        self.bank, self.k, self.tau, self.eps = bank, k, tau, eps
        self.weight, self.proto_tau = weight, proto_tau

    def forward(self, z: Tensor, y: Tensor | None = None, *, repeat: bool = False) -> Loss:
        """Loss of unit vectors z (B, V, D) of V views with labels y (B,), or without: then all prototypes are one
        pool.

        repeat  True when the same batch is evaluated again: from the same prototypes, which then stay
        """
        if z.dim() != 3 or z.shape[0] * z.shape[1] < 2:
            shape = tuple(z.shape)
            raise InputError("z", f"has shape {shape}", "Give (examples, views, size), two vectors at least.")
        bank, points = self.bank, require_unit(z, self.bank.dim).flatten(0, 1)
        own = self._own(y, z)
        start = bank.start(repeat)
        assigned = torch.where(own, self._transport(points, start), 0.0)
        # of the own class even where all shares underflow to zero
        best = torch.where(own, assigned, -1.0).topk(self.k, 1).indices
        kept = torch.zeros_like(own).scatter(1, best, True)
        assigned = nn.functional.normalize(assigned * kept, p=1, dim=1)
        prototypes = bank.moved(start, points, assigned)
        if not repeat:
            bank.keep(prototypes, assigned)
        fixed = prototypes.detach()
        weights = nn.functional.normalize(self._transport(points, fixed) * kept, p=1, dim=1)
        logits = points @ fixed.T / self.tau
        likelihood = (logits.logsumexp(1) - (weights * logits).sum(1)).mean()
        contrast = self._contrast(prototypes, y is not None)
        total = likelihood + self.weight * contrast
        return Loss(total, {"likelihood": likelihood, "contrast": contrast})

    def _own(self, y: Tensor | None, z: Tensor) -> Tensor:
        """(B * V, P) whether a prototype may stand for an example."""
        rows, views, _ = z.shape
        if y is None:
            return torch.ones(rows * views, len(self.bank.labels), dtype=torch.bool, device=z.device)
        if y.shape != (rows,):
            raise InputError("y", f"has shape {tuple(y.shape)}", f"Give ({rows},) labels of the features.")
        if not 0 <= int(y.min()) <= int(y.max()) < self.bank.num_classes:
            raise InputError(
                "y",
                f"has labels from {int(y.min())} to {int(y.max())}",
                f"The bank has classes 0 to {self.bank.num_classes - 1}.",
            )
        return y.repeat_interleave(views)[:, None] == self.bank.labels

    def _transport(self, points: Tensor, prototypes: Tensor) -> Tensor:
        return sinkhorn(points.detach() @ prototypes.T, self.eps, ROUNDS)

    def _contrast(self, prototypes: Tensor, labelled: bool) -> Tensor:
        """Minus the mean log-probability of a prototype's positives among all other prototypes.

        Positives are the others of its class or, without labels, its `k` nearest (the paper does not say which).
        A prototype that is its class alone has none: what is left is CIDER's dispersion.
        """
        count = len(prototypes)
        if count == 1 or (labelled and self.bank.per_class == 1):
            return prototype_separation(prototypes, self.proto_tau)
        itself = torch.eye(count, dtype=torch.bool, device=prototypes.device)
        cosines = prototypes @ prototypes.T / self.proto_tau
        if labelled:
            positive = (self.bank.labels[:, None] == self.bank.labels) & ~itself
        else:
            near = cosines.detach().masked_fill(itself, -torch.inf).topk(min(self.k, count - 1), 1).indices
            positive = torch.zeros_like(itself).scatter(1, near, True)
        others = cosines.masked_fill(itself, -torch.inf).logsumexp(1)
        return (others - (cosines * positive).sum(1) / positive.sum(1)).mean()


@objectives.register(
    "palm",
    summary="Several prototypes a class by optimal transport, for OOD detection, and a linear probe",
    paper="Lu et al. 2024, arXiv 2402.02653",
    search={"per_class": ("choice", [2, 4, 6, 8]), "momentum": ("choice", [0.9, 0.95, 0.99])},
)
class PALM(TwoViews):
    """`PALMLoss` of the projections; see `TwoViews` for the probe.

    per_class   prototypes of each class
    k           that an example keeps; None takes all but one of them (5 of 6, as in the paper)
    momentum    of the prototypes: 0.95 suits a few hundred steps; the paper's 0.999 needs many thousands
    supervised  False makes one pool of all prototypes; labels then reach the probe alone
    """

    def __init__(
        self,
        per_class: int = 6,
        k: int | None = None,
        momentum: float = 0.95,
        tau: float = 0.1,
        eps: float = 0.05,
        weight: float = 1.0,
        proto_tau: float = 0.5,
        supervised: bool = True,
        projection: int = 128,
        crop: float = 0.5,
        flip: bool = True,
        corruption: float = 0.3,
    ):
        super().__init__(projection, crop, flip, corruption)
        self.per_class, self.k, self.momentum, self.supervised = per_class, k, momentum, supervised
        self.options = {"tau": tau, "eps": eps, "weight": weight, "proto_tau": proto_tau}
        self._loss(1, torch.Generator())  # wrong options are reported before training

    def _loss(self, classes: int, generator: torch.Generator | None = None) -> PALMLoss:
        bank = PrototypeBank(classes, self.per_class, self.projection, self.momentum, generator=generator)
        return PALMLoss(bank, self.k or max(1, self.per_class - 1), **self.options)

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        super().setup(features=features, classes=classes, domains=domains)
        self.loss = self._loss(classes)

    def contrast(self, z: Tensor, batch: Batch) -> Loss:
        labels = likeliest_class(batch.y) if self.supervised else None
        return self.loss(z, labels, repeat=batch.repeat)
