"""Sparse regions of what there is already, and the examples of a pool that fall there."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unseen.curation.base import Loss, Pool, Selector, example_loss
from unseen.curation.spaces import Space, points
from unseen.errors import InputError
from unseen.registry import selectors
from unseen.shifts.sampling import derive_seed


class SparseRegions:
    """Clusters (k-means) of points (N, D) and which of them have few members.

    clusters  default max(16, N / 50), but four members each on average: with more of them, what is dense falls into
              many small ones, with fewer, everything is dense
    quantile  clusters with as many members as this quantile of sizes, or fewer, are sparse

    Source: Jung et al. 2025, arXiv 2505.20161, section 4; numbers reconstructed.
    """

    def __init__(self, clusters: int | None = None, quantile: float = 0.5, seed: int = 0):
        if clusters is not None and clusters < 2:
            raise InputError("clusters", f"is {clusters}", "Give two at least, or None.")
        if not 0 <= quantile < 1:
            raise InputError("quantile", f"is {quantile}", "Give a number from 0 to below 1.")
        self.clusters, self.quantile, self.seed = clusters, quantile, seed

    def fit(self, found: Tensor) -> SparseRegions:
        """Cluster points anew: counts of before are stale."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        values = found.detach().cpu().double().numpy()
        if len(values) < 2:
            raise InputError("points", f"are {len(values)}", "Give two at least.")
        default = max(2, min(max(16, len(values) // 50), len(values) // 4))
        count = min(len(values), self.clusters or default)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters
            self._means = KMeans(count, n_init=1, random_state=self.seed).fit(values)
        self.sizes: NDArray[np.int64] = np.bincount(self._means.labels_, minlength=count)
        self.sparse = self.sizes <= np.quantile(self.sizes, self.quantile, method="lower")
        return self

    def members(self) -> NDArray[np.int64]:
        """(N,) cluster of each point that was fitted."""
        return self._means.labels_

    def cluster(self, found: Tensor) -> NDArray[np.int64]:
        """(M,) cluster with the nearest centre for each of other points (M, D)."""
        return self._means.predict(found.detach().cpu().double().numpy())


def select_diverse(
    candidates: Tensor,
    count: int,
    *,
    start: Tensor | None = None,
    clusters: int | None = None,
    quantile: float = 0.5,
    batch: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Rows of `count` candidates (N, D) in the order of taking them: those in sparse regions of what is there.

    start    points (M, D) of the set that grows; None begins with 16 candidates drawn by chance
    batch    taken before regions are found anew; default a tenth of `count`

    When no candidate falls in a sparse region, those in the least dense come first. Garbage is sparse, too: leave
    it out before. Raises InputError for a count outside 1 to N.
    """
    total = len(candidates)
    if not 1 <= count <= total:
        raise InputError("count", f"is {count}", f"Give 1 to {total}, the number of candidates.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(derive_seed(seed, 0))).numpy()
    batch = batch or max(1, count // 10)
    taken = [] if start is not None else order[: min(count, max(2, min(16, total)))].tolist()
    left = order[len(taken) :]
    while len(taken) < count:
        known = candidates[taken] if start is None else torch.cat([start, candidates[taken]])
        regions = SparseRegions(clusters, quantile, derive_seed(seed, len(taken)) % 2**32).fit(known)
        where = regions.cluster(candidates[torch.from_numpy(left)])
        size = regions.sizes[where]
        rank = np.where(regions.sparse[where], 0, size)  # within sparse regions by chance
        best = np.argsort(rank, kind="stable")[: min(batch, count - len(taken))]
        if (rank[best] == 0).any():
            best = best[rank[best] == 0]
        taken += left[best].tolist()
        left = np.delete(left, best)
    return torch.tensor(taken[:count])


@selectors.register(
    "sparse_regions",
    summary="examples whose gradients fall where few are so far",
    paper="Jung et al. 2025, arXiv 2505.20161",
)
class SparseRegionsSelector(Selector):
    """The filter of Prismatic Synthesis over a pool that is there; see `select_diverse`.

    depth  share of the pool that is put in order, in (0, 1]; the others come behind by chance
    """

    def __init__(
        self,
        space: Space = "gradients",
        depth: float = 0.5,
        clusters: int | None = None,
        quantile: float = 0.5,
        dimension: int = 1024,
        seed: int = 0,
        loss: Loss = "labels",
    ):
        if not 0 < depth <= 1:
            raise InputError("depth", f"is {depth}", "Give the share to put in order, in (0, 1].")
        SparseRegions(clusters, quantile)
        self.space, self.depth, self.clusters, self.quantile = space, depth, clusters, quantile
        self.dimension, self.seed, self.loss = dimension, seed, example_loss(loss)

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        found = points(self.space, model, pool, dimension=self.dimension, seed=self.seed, loss=self.loss)
        count = max(1, round(self.depth * len(pool)))
        rows = select_diverse(found, count, clusters=self.clusters, quantile=self.quantile, seed=self.seed)
        chance = torch.rand(
            len(pool), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
        )
        chance[rows] = 1 + torch.arange(count, 0, -1, dtype=torch.float64)
        return chance
