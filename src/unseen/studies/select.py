"""Model selection: pure functions over the table of results, applied after everything was run."""

from __future__ import annotations

import pandas as pd

from unseen.errors import InputError, nearest
from unseen.studies.plan import RULES, Rule

PEEKS: dict[str, bool] = {"id-validation": False, "leave-one-domain-out": False, "oracle": True}
"""Whether a rule looks at labels of the unseen domains."""


def selection_scores(cells: pd.DataFrame, metrics: pd.DataFrame, rule: Rule) -> pd.Series:
    """Score of every cell under a rule (higher is better), indexed by cell.

    id-validation         accuracy on held-back examples of the training domains
    leave-one-domain-out  accuracy on a training domain that was held out as if unseen, averaged over the
                          choice of that domain; each such run trains on one domain less
    oracle                accuracy on the unseen domains themselves: peeks, an upper bound only
    """
    if rule not in RULES:
        raise InputError(f"selection rule {rule!r}", "is not known", nearest(rule, RULES))
    final = metrics[(metrics.step == -1) & (metrics.metric == "accuracy")]
    if rule in ("id-validation", "oracle"):
        role = "validation" if rule == "id-validation" else "unseen"
        rows = final[(final.role == role) & (final.domain != "all")]
        return rows.groupby("cell").value.mean()
    joined = final[(final.role == "unseen") & (final.domain != "all")].merge(cells, on="cell")
    scores = {}
    for cell in cells.itertuples():
        same = joined[
            (joined.method == cell.method) & (joined.draw == cell.draw) & (joined.seed == cell.seed)
        ]
        stand_ins = [
            row.value
            for row in same.itertuples()
            if set(cell.unseen) < set(row.unseen)
            and len(row.unseen) == len(cell.unseen) + 1
            and row.domain not in cell.unseen
        ]
        if stand_ins:
            scores[cell.cell] = sum(stand_ins) / len(stand_ins)
    return pd.Series(scores, dtype=float)


def select(
    cells: pd.DataFrame, metrics: pd.DataFrame, rule: Rule, asked: list[tuple[str, ...]]
) -> pd.DataFrame:
    """The best draw of each (method, unseen domains, seed): rows of `cells` with a column `score`.

    `asked` are the held-out sets that the study is about (leave-one-domain-out runs have others, too).
    """
    done = cells[(cells.status == "done") & cells.unseen.isin(asked)]
    scores = selection_scores(cells, metrics, rule)
    scored = done.assign(score=done.cell.map(scores)).dropna(subset="score")
    if scored.empty:
        return scored
    order = scored.sort_values(["score", "draw"], ascending=[False, True])  # equal scores: the given values
    return order.drop_duplicates(["method", "unseen", "seed"]).sort_values(["method", "unseen", "seed"])
