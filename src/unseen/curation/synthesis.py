"""Prismatic Synthesis: a set grows by new examples that are right and fall where few are so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.curation.sparse_regions import SparseRegions
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import vendi_score
from unseen.shifts.sampling import derive_seed

Accept = Literal["sparse", "all", "chance"]


class Growth(NamedTuple):
    """The grown set, the given examples first, and what happened.

    log  a row a round: round, generated, verified, accepted, size, clusters, smallest, largest (members of a
         cluster), g_vendi (of the set before the round)
    """

    samples: list[Any]
    log: pd.DataFrame


class PrismaticSynthesizer:
    """Grows a set: generate from demonstrations, verify, keep what falls in sparse regions, find regions anew.

    generator     (demonstrations, torch.Generator) -> new samples: a language model, an augmentation, a rule
    verifier      samples -> (n,) bool: which are right. Outliers are sparse, too: without it garbage is kept
    gradient_fn   samples -> (n, D), such as projected gradients of length 1
    demonstrations
                  samples drawn from sparse regions for each round's prompt
    clusters, quantile
                  see `SparseRegions`
    accept        "sparse", the method; "all" or "chance" (as many, by chance) to compare it with
    patience      rounds in a row in which the verifier may reject everything

    Source: Jung et al. 2025, arXiv 2505.20161, section 4.
    """

    def __init__(
        self,
        generator: Callable[[list[Any], torch.Generator], Sequence[Any]],
        verifier: Callable[[list[Any]], Any],
        gradient_fn: Callable[[list[Any]], Tensor],
        *,
        demonstrations: int = 8,
        clusters: int | None = None,
        quantile: float = 0.5,
        accept: Accept = "sparse",
        patience: int = 3,
        seed: int = 0,
    ):
        if accept not in ("sparse", "all", "chance"):
            raise InputError(f"accept {accept!r}", "is not known", "Give 'sparse', 'all' or 'chance'.")
        for name, value in (("demonstrations", demonstrations), ("patience", patience)):
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number from 1.")
        SparseRegions(clusters, quantile)
        self.generator, self.verifier, self.gradient_fn = generator, verifier, gradient_fn
        self.demonstrations, self.clusters, self.quantile = demonstrations, clusters, quantile
        self.accept, self.patience, self.seed = accept, patience, seed

    def grow(self, seed_set: Sequence[Any], target_size: int, max_rounds: int = 1000) -> Growth:
        """Grow `seed_set`, of two samples or more, to `target_size`, or as far as `max_rounds` bring it.

        Raises InputError when nothing passes the verifier for `patience` rounds in a row.
        """
        samples, found = list(seed_set), self._points(list(seed_set))
        if len(samples) < 2:
            raise InputError("seed_set", f"has {len(samples)} sample(s)", "Give two at least.")
        log: list[dict[str, Any]] = []
        rejected = 0
        while len(samples) < target_size and len(log) < max_rounds:
            round_ = len(log)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, round_))
            regions = SparseRegions(self.clusters, self.quantile, derive_seed(self.seed, round_) % 2**32).fit(
                found
            )
            new = list(self.generator(self._demonstrations(samples, regions, generator), generator))
            right = self._verified(new)
            rejected = 0 if right else rejected + 1
            if rejected == self.patience:
                raise InputError(
                    "verifier",
                    f"rejected everything in {rejected} rounds",
                    "Look at what the generator makes.",
                )
            entry = {
                "round": round_,
                "generated": len(new),
                "verified": len(right),
                "accepted": 0,
                "clusters": len(regions.sizes),
                "smallest": int(regions.sizes.min()),
                "largest": int(regions.sizes.max()),
                "g_vendi": vendi_score(found),
            }
            if right:
                where = self._points(right)
                kept = self._accepted(regions, where, generator)[: target_size - len(samples)]
                samples += [right[row] for row in kept]
                found = torch.cat([found, where[kept]])
                entry["accepted"] = len(kept)
            log.append({**entry, "size": len(samples)})
        return Growth(samples, pd.DataFrame(log))

    def _demonstrations(
        self, samples: list[Any], regions: SparseRegions, generator: torch.Generator
    ) -> list[Any]:
        from_all = self.accept != "sparse"
        rows = np.arange(len(samples)) if from_all else np.flatnonzero(regions.sparse[regions.members()])
        chosen = torch.randperm(len(rows), generator=generator)[: self.demonstrations].tolist()
        return [samples[rows[index]] for index in chosen]

    def _accepted(self, regions: SparseRegions, where: Tensor, generator: torch.Generator) -> list[int]:
        if self.accept == "all":
            return list(range(len(where)))
        sparse = np.flatnonzero(regions.sparse[regions.cluster(where)])
        if self.accept == "chance":
            return torch.randperm(len(where), generator=generator)[: len(sparse)].tolist()
        return sparse.tolist()

    def _verified(self, new: list[Any]) -> list[Any]:
        if not new:
            return []
        right = torch.as_tensor(self.verifier(new)).bool()
        if right.shape != (len(new),):
            raise InputError(
                "verifier", f"gave {tuple(right.shape)} for {len(new)} samples", "Give one bool each."
            )
        return [sample for sample, passed in zip(new, right.tolist(), strict=True) if passed]

    def _points(self, samples: list[Any]) -> Tensor:
        found = torch.as_tensor(self.gradient_fn(samples))
        if found.dim() != 2 or len(found) != len(samples) or not bool(torch.isfinite(found).all()):
            raise InputError(
                "gradient_fn",
                f"gave {tuple(found.shape)} for {len(samples)} samples, or numbers that are not finite",
                "Give finite numbers (n, D).",
            )
        return found


def majority_answer(answers: Sequence[Hashable], share: float = 0.5) -> Hashable | None:
    """The answer that more than `share` of several solutions come to, or None: what the paper verifies by."""
    if not answers:
        raise InputError("answers", "are none", "Give one at least.")
    answer, count = Counter(answers).most_common(1)[0]
    return answer if count > share * len(answers) else None
