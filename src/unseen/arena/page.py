"""What a comparison leaves behind: scores.csv, ranking.json and a page, each written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import unseen
from unseen.arena.ranking import Recommendation
from unseen.reports.page import html_page, html_table, write_texts
from unseen.reports.svg import GRID, MARKERS, MUTED, SERIES, drawing, to_svg

_NOTES = ("score", "low", "high", "rank")


def write_comparison(
    folder: str | Path,
    frame: pd.DataFrame,
    ranking: pd.DataFrame,
    advice: Recommendation,
    facts: dict[str, Any],
) -> Path:
    """Write the three files; gives the page. `facts` say what was compared on what.

    ranking.json comes last: where it is, the others are of the same comparison. Raises InputError when the folder
    cannot be written.
    """
    folder = Path(folder)
    record = {
        "library": f"unseen {unseen.__version__}",
        **facts,
        "ranking": json.loads(ranking.reset_index(names="backbone").to_json(orient="records")),
        "recommended": advice.best,
        "not told apart from it": advice.close,
        "excluded": advice.excluded,
    }
    texts = {
        "scores.csv": frame.to_csv(index=False),
        "backbones.html": _page(frame, ranking, advice, facts),
        "ranking.json": json.dumps(record, indent=1) + "\n",
    }
    write_texts(folder, texts)
    return folder / "backbones.html"


def advice_in_words(advice: Recommendation) -> str:
    """One sentence a finding."""
    said = [f"Take {advice.best}."]
    if advice.close:
        said.append(f"Over seeds it is not told apart from {', '.join(advice.close)}.")
    said += [f"Excluded: {name}, {why}." for name, why in advice.excluded.items()]
    return " ".join(said)


def raw_means(frame: pd.DataFrame, ranking: pd.DataFrame) -> pd.DataFrame:
    """Raw values, mean over seeds: a row a backbone in the order of the ranking, a column a setting and metric."""
    names = frame.task + " · " + frame.setting + " · " + frame.metric
    table = frame.assign(column=names).pivot_table(index="backbone", columns="column", values="value")
    return table.loc[list(ranking.index), list(dict.fromkeys(names))]


def _page(frame: pd.DataFrame, ranking: pd.DataFrame, advice: Recommendation, facts: dict[str, Any]) -> str:
    """A whole HTML page without scripts or anything from elsewhere; readable in light and dark."""
    tasks = [column for column in ranking if column not in _NOTES]
    params = frame.drop_duplicates("backbone").set_index("backbone").params
    numbers = ranking[[*tasks, "score"]].map("{:+.2f}".format).assign(
        range=[f"{low:+.2f} to {high:+.2f}" for low, high in zip(ranking.low, ranking.high, strict=True)],
        parameters=[f"{params[name]:,}" for name in ranking.index],
    )  # fmt: skip
    raw = raw_means(frame, ranking).map("{:.3f}".format)
    body = (
        f"<figure>{_figure(ranking, tasks)}<figcaption>z-scores: how far a backbone is from the mean of those "
        "compared, in their standard deviations. Another pool gives other scores. Bars: range over seeds."
        f"</figcaption></figure>\n<h2>Ranking</h2>{_table(numbers)}\n"
        f"<h2>Raw values, mean over seeds</h2>{_table(raw)}"
    )
    return html_page("unseen backbones", advice_in_words(advice), facts, body)


def _figure(ranking: pd.DataFrame, tasks: list[str]) -> str:
    rows = np.arange(len(ranking))[::-1]
    with drawing(900, 90 + 34 * len(ranking)) as (figure, axes):
        for number, task in enumerate(tasks):
            axes.plot(
                ranking[task], rows, MARKERS[(number + 1) % len(MARKERS)], label=task, alpha=0.75,
                color=SERIES[(number + 1) % len(SERIES)], markersize=6,
            )  # fmt: skip
        sides = [ranking.score - ranking.low, ranking.high - ranking.score]
        axes.errorbar(
            ranking.score, rows, xerr=sides, fmt=MARKERS[0], color=SERIES[0], markersize=9, label="overall"
        )
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(rows, list(ranking.index))
        axes.set(xlabel="z-score, higher is better", ylim=(-0.6, len(ranking) - 0.4))
        axes.grid(color=GRID)
        figure.legend(loc="outside upper center", ncols=len(tasks) + 1)
        described = "; ".join(f"{name}: {score:+.2f}" for name, score in ranking.score.items())
        return to_svg(figure, "backbones", "Backbones by z-score", described)


def _table(table: pd.DataFrame) -> str:
    rows = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return html_table(["backbone", *map(str, table.columns)], rows, ["backbone"])
