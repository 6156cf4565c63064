"""A Gaussian with a covariance of its own for every class: the density of the features under their mixture."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import class_means, require_labels
from unseen.detection.base import Detector, require_finite
from unseen.networks import Bank
from unseen.registry import detectors

BLOCK = 4096
"""Rows that are compared with all classes at a time."""

GLANCE, LOOK = 16, 80
"""Whitened coordinates that suffice to rule most classes out, and most of those that are left."""

NEGLIGIBLE = 30.0
"""A class whose log-density is this much below another's changes no float32 digit of their sum."""


@detectors.register(
    "gmm",
    summary="Log-density under a Gaussian with full covariance for every class",
    paper="Lee et al. 2018, arXiv 1807.03888, without the tied covariance",
)
class ClassGaussians(Detector):
    """Log of the mixture of the classes' Gaussians, weighted by their frequencies, up to a constant.

    shrinkage  added to every covariance's diagonal, relative to the mean variance within classes

    Log-determinants count relative to their mean over the classes, so that a feature that never varies changes
    nothing. Keeps C D^2 float32 numbers: 100 MB for 100 classes of 512 features. Familiar inputs cost a tenth or
    less of a product with all of them, inputs far from every class about half of it.
    """

    centre: Tensor
    means: Tensor
    whitening: Tensor
    offset: Tensor

    def __init__(self, shrinkage: float = 1e-4):
        super().__init__()
        self.shrinkage = shrinkage

    def fit(self, bank: Bank) -> Self:
        features, labels = require_finite(bank.features, "features"), require_labels(bank)
        size, classes = features.shape[1], bank.logits.shape[1]
        means, counts = class_means(features, labels, classes), torch.bincount(labels, minlength=classes)
        variance = means.new_zeros(())
        for rows, numbers in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
            variance += (rows.double() - means[numbers]).square().sum()
        ridge = self.shrinkage * (variance / features.numel()).clamp(min=1e-12)
        identity = torch.eye(size, dtype=means.dtype, device=means.device)
        whitening = features.new_empty(classes, size, size, dtype=torch.float32)
        log_roots = means.new_empty(classes)
        for number, mean in enumerate(means):
            centred = features[labels == number].double() - mean
            factor = torch.linalg.cholesky(centred.T @ centred / len(centred) + ridge * identity)
            # the last rows: what a feature is off its regression on all before it, where classes differ the most
            whitening[number] = torch.linalg.solve_triangular(factor, identity, upper=False).flip(0)
            log_roots[number] = factor.diagonal().log().sum()
        centre = means.mean(0)
        self.keep(
            bank,
            centre=centre.float(),
            means=(means - centre).float(),
            whitening=whitening,
            offset=((counts / len(labels)).log() - log_roots + log_roots.mean()).float(),
        )
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        features = require_finite(bank.features, "features").float() - self.centre
        if torch.compiler.is_exporting():  # a graph does the same for all inputs
            every = [self._log_density(features, number) for number in range(len(self.means))]
            return torch.stack(every, 1).logsumexp(1)
        return torch.cat([self._log_mixture(rows) for rows in features.split(BLOCK)])

    def _log_density(self, features: Tensor, number: int) -> Tensor:
        """(N,) log of weight times density of one class."""
        whitened = (features - self.means[number]) @ self.whitening[number].T
        return self.offset[number] - whitened.square().sum(1) / 2

    def _log_mixture(self, features: Tensor) -> Tensor:
        """Exact up to NEGLIGIBLE, but whitens with few of the classes' covariances.

        A part of the squares of the whitened coordinates bounds each log-density from above: classes whose
        bound is far below the log-density of one class are out.
        """
        glance = self.whitening[:, :GLANCE]
        at_means = (glance @ self.means[:, :, None]).squeeze(2)
        seen = (features @ glance.flatten(0, 1).T).view(len(features), *at_means.shape) - at_means
        bounds = self.offset - seen.square().sum(2) / 2
        exact = torch.full_like(bounds, -torch.inf)
        floor = exact[:, 0]
        wanted = bounds == bounds.amax(1, keepdim=True)
        for _ in range(2):
            for number in wanted.any(0).nonzero().flatten().tolist():
                rows = wanted[:, number].nonzero().flatten()
                exact[rows, number] = self._log_density_above(floor[rows], features[rows], number)
            floor = exact.amax(1) - NEGLIGIBLE
            wanted = (bounds > floor[:, None]) & exact.isinf()
        return exact.logsumexp(1)

    def _log_density_above(self, floor: Tensor, features: Tensor, number: int) -> Tensor:
        """(N,) as `_log_density`, but minus infinity where a first look shows that it is below the floor (N,)."""
        offsets, whitening = features - self.means[number], self.whitening[number]
        found = self.offset[number] - (offsets @ whitening[:LOOK].T).square().sum(1) / 2
        above = found > floor
        rest = (offsets[above] @ whitening[LOOK:].T).square().sum(1) / 2
        return found.masked_fill(~above, -torch.inf).masked_scatter(above, found[above] - rest)
