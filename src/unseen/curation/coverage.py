"""Selectors by how examples lie to each other: each next one is far from, or unlike, those chosen before.

They put the examples in an order, of which any budget takes the first: what is chosen by a smaller budget is part
of what is chosen by a larger one.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from unseen.curation.base import Loss, Pool, Selector, example_loss
from unseen.curation.spaces import Space, points
from unseen.errors import InputError
from unseen.registry import selectors


class GreedySelector(Selector):
    """Subclasses say how far an example is from those chosen, and which is chosen next.

    space      "features", "inputs" or "gradients", see `unseen.curation.spaces.points`
    depth      share of the examples, in (0, 1], that are put in order, one pass over the points each; those behind
               them come by their distance from the chosen. As large as the budget is enough when the selection is
               not `by` domains or classes
    dimension, seed, loss  of projected gradients; the seed also of draws
    """

    def __init__(
        self,
        space: Space = "features",
        depth: float = 1.0,
        dimension: int = 1024,
        seed: int = 0,
        loss: Loss = "labels",
    ):
        if not 0 < depth <= 1:
            raise InputError("depth", f"is {depth}", "Give the share to put in order, in (0, 1].")
        self.space, self.depth, self.dimension, self.seed = space, depth, dimension, seed
        self.loss = example_loss(loss)

    @torch.no_grad()
    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        found = points(self.space, model, pool, dimension=self.dimension, seed=self.seed, loss=self.loss)
        found, generator = self._prepared(found), torch.Generator().manual_seed(self.seed)
        count = len(found)
        worth = found.new_full((count,), math.inf)  # how far from those chosen
        open_, place = torch.ones_like(worth, dtype=torch.bool), torch.zeros(count)
        newest = self._first(found)
        steps = math.ceil(self.depth * count)
        for step in range(steps):
            place[newest], open_[newest] = count - step, False
            worth = self._with(worth, found, newest, step)
            if step + 1 < steps:
                newest = self._next(worth.where(open_, -math.inf), generator)
        behind = open_.cpu()
        place[behind] = worth[open_].argsort().argsort().cpu().to(place)
        return place

    def _prepared(self, found: Tensor) -> Tensor:
        return found

    def _first(self, found: Tensor) -> int:
        """The example that is nearest to the mean."""
        return int((found - found.mean(0)).square().sum(1).argmin())

    @abstractmethod
    def _with(self, worth: Tensor, found: Tensor, newest: int, step: int) -> Tensor:
        """(N,) how far each example is from those chosen, now that number `step` is `newest`."""

    def _next(self, worth: Tensor, generator: torch.Generator) -> int:
        return int(worth.argmax())


@selectors.register(
    "k_centre", summary="farthest from all chosen comes next", paper="Sener & Savarese 2018, arXiv 1708.00489"
)
class KCentreSelector(GreedySelector):
    """Its largest distance to a chosen example is at most twice the least possible (Gonzalez 1985)."""

    def _with(self, worth: Tensor, found: Tensor, newest: int, step: int) -> Tensor:
        return torch.minimum(worth, (found - found[newest]).square().sum(1))


@selectors.register(
    "kmeans_plus_plus",
    summary="drawn with the squared distance to the nearest chosen",
    paper="Arthur & Vassilvitskii 2007",
)
class KMeansPlusPlusSelector(KCentreSelector):
    """Outliers are chosen less often than by k-centre."""

    def _next(self, worth: Tensor, generator: torch.Generator) -> int:
        left = worth.clamp(min=0).double().cpu()
        if not left.sum() > 0:
            return int(worth.argmax())  # only copies of chosen ones are left
        return int(torch.multinomial(left, 1, generator=generator))


@selectors.register(
    "vendi_greedy",
    summary="least alike to all chosen comes next: the Vendi score of order 2 grows most",
    paper="Pasarkar & Dieng 2024, arXiv 2310.12952",
)
class VendiSelector(GreedySelector):
    """The score of order 2 is n^2 / sum of squared cosines: what an example adds to the sum is told in one pass.

    With space="gradients" it is the greedy choice for G-Vendi. Raises InputError for points at zero.
    """

    def _prepared(self, found: Tensor) -> Tensor:
        lengths = found.norm(dim=1, keepdim=True)
        zero = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
        if zero:
            shown = ", ".join(map(str, zero[:10]))
            raise InputError(
                f"{self.space} of example {shown}", "are zero: nothing is like them", "Leave these out."
            )
        return found / lengths

    def _with(self, worth: Tensor, found: Tensor, newest: int, step: int) -> Tensor:
        return (0.0 if step == 0 else worth) - (found @ found[newest]).square()
