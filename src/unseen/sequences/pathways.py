"""Pathways: the experts that a sample goes through, layer by layer, and how many edits lie between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.routing import as_routing

Pathway = list[list[int]]
"""Chosen experts of every layer, the largest routing weight first."""

PAIRS = 8192
"""Pairs that are compared at once: their tables stay small."""


def pathways(routing: Any, threshold: float = 0.7) -> list[Pathway]:
    """Experts of each sample and layer: the shortest prefix, by weight, whose weights sum to more than `threshold`.

    routing    (N, L, K) weights from 0 that sum to 1 over the K experts, L >= 2
    threshold  in (0, 1]; at 1 all experts are kept

    Of equal weights the lower number comes first. Raises InputError for other shapes, weights that are not
    normalised, and thresholds out of range. Source: arXiv 2506.21551, section 3.
    """
    if not 0 < threshold <= 1:
        raise InputError("threshold", f"is {threshold}", "Give a number above 0, at most 1.")
    values, order = as_routing(routing).double().sort(dim=-1, descending=True, stable=True)
    # rounding must not let 0.7 exceed 0.7, or 1 be reached before the last expert
    before = (values.cumsum(-1) <= threshold + 1e-6).sum(-1)
    counts = (before + 1).clamp(max=values.shape[-1])
    return [
        [experts[:count] for experts, count in zip(layers, kept, strict=True)]
        for layers, kept in zip(order.tolist(), counts.tolist(), strict=True)
    ]


def pathway_text(pathway: Pathway) -> str:
    """The paper's notation: experts joined by commas, layers by dashes, "3,1,5-0,2"."""
    return "-".join(",".join(map(str, experts)) for experts in pathway)


def sample_pairs(samples: int, count: int = 1000, seed: int = 0, groups: Any = None) -> Tensor:
    """Up to `count` different pairs of samples, (P, 2) int64; the same seed gives the same pairs.

    groups  (samples,) names, a list or an array: only pairs of one name are drawn, as often as there are such pairs

    Raises InputError for fewer than two samples, or when no two share a group.
    """
    if samples < 2:
        raise InputError("samples", f"are {samples}", "A distance needs two at least.")
    names = np.zeros(samples) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(names) != samples:
        raise InputError("groups", f"are {len(names)}", f"Give one for each of {samples} samples.")
    order, sizes = np.argsort(names, kind="stable"), np.unique(names, return_counts=True)[1]
    ends = np.cumsum(
        sizes * (sizes - 1) // 2
    )  # pairs are numbered group by group: none is listed before it is drawn
    if ends[-1] == 0:
        raise InputError("groups", "hold no two samples of one name", "Give two samples of a group.")
    generator = np.random.default_rng(seed)
    numbers = np.sort(generator.choice(ends[-1], size=min(count, ends[-1]), replace=False))
    group = np.searchsorted(ends, numbers, side="right")
    within = numbers - np.concatenate([[0], ends])[group]
    second = ((1 + np.sqrt(1 + 8 * within)) // 2).astype(np.int64)  # (0, 1), (0, 2), (1, 2), (0, 3), ...
    first = within - second * (second - 1) // 2
    starts = (np.cumsum(sizes) - sizes)[group]
    return torch.as_tensor(np.stack([order[starts + first], order[starts + second]], axis=1))


class Edits(NamedTuple):
    """Of P pairs of pathways, each (P,)."""

    distance: NDArray[np.float64]
    """Levenshtein's: insertions, deletions and changes of a symbol."""
    longer: NDArray[np.int64]
    """Symbols of the longer of the two, the greatest distance that there can be."""


def pair_edits(paths: Sequence[Pathway], pairs: Tensor, level: Literal["token", "char"] = "token") -> Edits:
    """Levenshtein distances of pairs (P, 2) of pathways.

    level  "token": an expert and the end of a layer are one symbol each. "char": characters of `pathway_text`,
           where commas and digits count, as in the paper
    """
    if level not in ("token", "char"):
        raise InputError("level", f"is {level!r}", "Give 'token' or 'char'.")
    if len(paths) < 2:
        raise InputError("pathways", f"are {len(paths)}", "A distance needs two at least.")
    spell = _tokens if level == "token" else _characters
    symbols, lengths = _padded([spell(path) for path in paths])
    first, second = pairs.numpy().T
    chunks = len(first) // PAIRS + 1
    found = [
        _levenshtein(symbols[i], symbols[j], lengths[i], lengths[j])
        for i, j in zip(np.array_split(first, chunks), np.array_split(second, chunks), strict=True)
    ]
    return Edits(np.concatenate(found), np.maximum(lengths[first], lengths[second]))


def pathway_distance(
    paths: Sequence[Pathway],
    pairs: Literal["sample", "all"] | Tensor = "sample",
    level: Literal["token", "char"] = "token",
    normalize: bool = False,
) -> float:
    """Mean Levenshtein distance of pathways, over pairs of samples.

    pairs      "sample": 1,000 pairs, the same at each call for as many samples; "all"; or `sample_pairs` (P, 2)
    level      see `pair_edits`
    normalize  divide by the length of the longer of the two: in [0, 1], whatever the number of experts kept

    Raises InputError for fewer than two pathways. Source: arXiv 2506.21551, section 3.
    """
    if isinstance(pairs, str):
        if pairs not in ("sample", "all"):
            raise InputError("pairs", f"is {pairs!r}", "Give 'sample', 'all', or rows (P, 2).")
        pairs = sample_pairs(len(paths), 1000 if pairs == "sample" else len(paths) ** 2)
    distance, longer = pair_edits(paths, pairs, level)
    return float((distance / longer if normalize else distance).mean())


def _tokens(path: Pathway) -> list[int]:
    """Expert numbers, and -1 between layers."""
    return [symbol for experts in path for symbol in (*experts, -1)][:-1]


def _characters(path: Pathway) -> list[int]:
    return [ord(letter) for letter in pathway_text(path)]


def _padded(rows: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), lengths.max()), -2, dtype=np.int32)
    table[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
    return table, lengths


def _levenshtein(
    a: NDArray[np.int32], b: NDArray[np.int32], a_lengths: NDArray[np.int64], b_lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Distances of P pairs of padded words (P, M), (P,): Wagner and Fischer's table, a row at a time for all pairs.

    Within a row a cell waits for its left neighbour plus 1: cell - index is then a running minimum.
    """
    index = np.arange(b.shape[1] + 1)
    row = np.broadcast_to(index, (len(a), len(index)))
    found = np.zeros(len(a))
    for position in range(a.shape[1]):
        change = row[:, :-1] + (a[:, position, None] != b)
        begin = np.full((len(a), 1), position + 1)
        cells = np.concatenate([begin, np.minimum(row[:, 1:] + 1, change)], axis=1)
        row = np.minimum.accumulate(cells - index, axis=1) + index
        ends = a_lengths == position + 1
        found[ends] = row[ends, b_lengths[ends]]
    return found
