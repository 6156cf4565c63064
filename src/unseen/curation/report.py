"""What selectors have chosen: shares of domains and classes, wrong labels, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from unseen.curation.base import Pool
from unseen.errors import InputError


def overlap(selections: Mapping[str, Tensor]) -> pd.DataFrame:
    """Jaccard indices, size of intersection by size of union, of the rows that selectors keep, by name."""
    sets = {name: set(torch.as_tensor(rows).tolist()) for name, rows in selections.items()}
    empty = [name for name, rows in sets.items() if not rows]
    if empty:
        raise InputError(f"selection {empty[0]!r}", "keeps nothing", "Give rows.")
    table = [[len(a & b) / len(a | b) for b in sets.values()] for a in sets.values()]
    return pd.DataFrame(table, index=list(sets), columns=list(sets))


def selection_report(
    pool: Pool,
    rows: Tensor,
    scores: Tensor,
    *,
    wrong: Any = None,
    domains: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row for the whole (part "all"), each domain and each class: part, name, examples, kept, share, score.

    score   mean score of the kept less that of the others, in standard deviations of all (NaN without others)
    wrong   (N,) bool, where it is known which labels are wrong: adds wrong (their share among all) and wrong_kept
            (their share among the kept)
    domains, classes   their names; default their numbers

    Where examples are token sequences, `attrs["length_correlation"]` is Spearman's between scores and the number of
    tokens with a loss: a selector that keeps the short or the long shows there.
    """
    kept = torch.zeros(len(pool), dtype=torch.bool)
    kept[rows] = True
    mask = None if wrong is None else torch.as_tensor(wrong).bool()
    if len(scores) != len(pool) or (mask is not None and len(mask) != len(pool)):
        raise InputError("scores or wrong", f"are not of the {len(pool)} examples", "Give one an example.")
    deviation = scores.double().std(correction=0).clamp(min=1e-300)
    parts = [("all", "all", torch.ones(len(pool), dtype=torch.bool))]
    for part, values, names in (("domain", pool.domain, domains), ("class", pool.y, classes)):
        if values is not None and values.dim() == 1:
            for index in values.unique().tolist():
                parts.append((part, names[index] if names else str(index), values.cpu() == index))
    table = []
    for part, name, inside in parts:
        chosen, left = scores[inside & kept].double(), scores[inside & ~kept].double()
        row = {
            "part": part,
            "name": name,
            "examples": int(inside.sum()),
            "kept": len(chosen),
            "share": len(chosen) / int(inside.sum()),
            "score": float((chosen.mean() - left.mean()) / deviation),
        }
        if mask is not None:
            row["wrong"] = float(mask[inside].double().mean())
            row["wrong_kept"] = float(mask[inside & kept].double().mean())
        table.append(row)
    report = pd.DataFrame(table)
    if pool.y.dim() == 2:
        lengths = (pool.y != -100).sum(1).cpu().numpy()
        varies = np.ptp(lengths) > 0 and float(deviation) > 1e-300
        report.attrs["length_correlation"] = (
            float(spearmanr(scores.numpy(), lengths).statistic) if varies else 0.0
        )
    return report
