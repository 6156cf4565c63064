"""Prototypes: unit vectors that stand for classes, or for the parts of a class, on a hypersphere."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning

UNIT_TOLERANCE = 1e-3
"""How far the length of a vector may be from one."""
DEAD_SHARE, DEAD_STEPS = 1e-3, 100
"""A prototype with less than this share of its class, for so many steps of that class, is dead."""


class PrototypeBank(nn.Module):
    """P = num_classes * per_class unit vectors of size `dim`; those of one class are neighbours: `labels` (P,).

    momentum   of the moving average of the features that are assigned to a prototype, in [0, 1); None when the
               vectors are parameters, which an optimizer moves
    generator  draws the first vectors, uniform on the sphere; default torch's global one
    A moving average remembers where it was before its last step (`start`), so that a batch that is evaluated again
    gives the same loss.
    """

    weight: Tensor
    before: Tensor
    idle: Tensor

    def __init__(
        self,
        num_classes: int,
        per_class: int,
        dim: int,
        momentum: float | None = 0.95,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("per_class", per_class), ("dim", dim)):
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number from 1.")
        if momentum is not None and not 0 <= momentum < 1:
            raise InputError("momentum", f"is {momentum}", "Give a share from 0 to below 1, such as 0.95.")
        self.num_classes, self.per_class, self.dim, self.momentum = num_classes, per_class, dim, momentum
        vectors = torch.randn(num_classes * per_class, dim, generator=generator)
        vectors = nn.functional.normalize(vectors, dim=1)
        if momentum is None:
            self.weight = nn.Parameter(vectors)
            return
        self.register_buffer("weight", vectors)
        self.register_buffer("before", vectors.clone())
        self.register_buffer("idle", torch.zeros(len(vectors), dtype=torch.int64))

    @property
    def vectors(self) -> Tensor:
        """(P, dim) unit vectors."""
        return self.weight if self.momentum is not None else nn.functional.normalize(self.weight, dim=1)

    @property
    def labels(self) -> Tensor:
        """(P,) int64 class of each prototype."""
        classes = torch.arange(self.num_classes, device=self.weight.device)
        return classes.repeat_interleave(self.per_class)

    def similarities(self, z: Tensor) -> Tensor:
        """(B, P) cosines of unit vectors (B, dim) and prototypes."""
        return require_unit(z, self.dim) @ self.vectors.T

    def logits(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, C) cosine of unit vectors (B, dim) and the nearest prototype of each class, over `temperature`."""
        return self.similarities(z).unflatten(1, (self.num_classes, -1)).amax(2) / temperature

    def start(self, repeat: bool = False) -> Tensor:
        """(P, dim) prototypes at the beginning of a step, also when its batch is evaluated again."""
        self._require_average()
        return self.before if repeat else self.weight

    def moved(self, start: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        """(P, dim) `start` after a step of the moving average towards z' weights, which z feels in its gradient.

        z (B, dim), weights (B, P) from 0: they are made to sum to one for each prototype; one without any stays.
        """
        self._require_average()
        share = nn.functional.normalize(weights.detach(), p=1, dim=0)
        return nn.functional.normalize(self.momentum * start + (1 - self.momentum) * share.T @ z, dim=1)  # type: ignore[operator]

    @torch.no_grad()
    def keep(self, vectors: Tensor, weights: Tensor) -> None:
        """Take over prototypes (P, dim) after a step in which they had `weights` (B, P) of the batch.

        Warns of prototypes that have had hardly any for `DEAD_STEPS` steps.
        """
        self._require_average()
        self.before.copy_(self.weight)
        self.weight.copy_(vectors)
        given = weights.sum(0).view(self.num_classes, self.per_class)
        of_class = given.sum(1, keepdim=True)
        few = (given < DEAD_SHARE * of_class).flatten()
        seen = (of_class > 0).expand_as(given).flatten()  # a class that is not in the batch says nothing
        self.idle.copy_(torch.where(seen, (self.idle + 1) * few, self.idle))
        dead = (self.idle == DEAD_STEPS) & seen
        if dead.any():
            warnings.warn(
                f"prototypes {dead.nonzero().flatten().tolist()} have had less than {DEAD_SHARE:.1%} of their "
                f"class for {DEAD_STEPS} steps: fewer prototypes a class, or less momentum, would do",
                UnseenWarning,
                stacklevel=2,
            )

    def _require_average(self) -> None:
        if self.momentum is None:
            raise InputError(
                "prototypes",
                "are parameters, which an optimizer moves",
                "Give a momentum for a moving average.",
            )


def prototype_separation(vectors: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over prototypes of the log of the mean of exp(cosine to another / temperature): low when far apart.

    vectors (K, D), unit. Zero for a single one. The dispersion loss of CIDER (Ming et al. 2023, equation 6) and
    the separation of ProtoGCD (Ma et al. 2025).
    """
    require_unit(vectors, vectors.shape[1], "prototypes")
    count = len(vectors)
    if count == 1:
        return 0 * vectors.sum()
    cosines = vectors @ vectors.T / temperature
    own = torch.eye(count, dtype=torch.bool, device=vectors.device)
    return (cosines.masked_fill(own, -torch.inf).logsumexp(1) - math.log(count - 1)).mean()


def require_unit(z: Tensor, dim: int, what: str = "features") -> Tensor:
    """The vectors (..., dim) themselves; raises for another size, for NaN, and for a length that is not one."""
    if z.shape[-1] != dim:
        raise InputError(what, f"have size {z.shape[-1]}", f"The prototypes have size {dim}.")
    lengths = z.detach().norm(dim=-1)
    off = ~((lengths - 1).abs() <= UNIT_TOLERANCE)
    if off.any():
        raise InputError(
            what,
            f"are not unit vectors: {int(off.sum())} of {off.numel()}, the first of length {lengths[off][0]:.4g}",
            "Divide them by their length (torch.nn.functional.normalize).",
        )
    return z
