"""What a comparison leaves behind: scores.csv, ranking.json and a page, each written whole or not at all."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import unseen
from unseen.arena.ranking import Recommendation
from unseen.errors import InputError
from unseen.reports.svg import GRID, MARKERS, MUTED, SERIES, drawing, to_svg

_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --surface: #ffffff; --ink: #1b1d20; --muted: #5d636b;
  --line: #dfe1e4; --series-1: #0072b2; --series-2: #d55e00; --series-3: #00855f; --series-4: #b0588f;
  --series-5: #8a6d00; --series-6: #3a7fa8; --series-7: #6b6b6b; --series-8: #1b1d20; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --surface: #1d2024; --ink: #e8eaed;
  --muted: #a2a9b2; --line: #363b42; --series-1: #5cb2ea; --series-2: #ff9255; --series-3: #3ec79b;
  --series-4: #e29cc7; --series-5: #e0c04a; --series-6: #8ccbec; --series-7: #b5b5b5; --series-8: #e8eaed; } }
body { margin: 0 auto; max-width: 980px; padding: 24px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
figure { margin: 0 0 20px; padding: 16px; background: var(--surface); border: 1px solid var(--line);
  border-radius: 12px; } svg { width: 100%; } svg text { font-family: inherit; }
div { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
p, figcaption { color: var(--muted); }
"""
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(f"folder {str(folder)!r}", problem, "Choose another.") from None
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
    about = "; ".join(f"{name}: {value}" for name, value in facts.items())
    params = frame.drop_duplicates("backbone").set_index("backbone").params
    numbers = ranking[[*tasks, "score"]].map("{:+.2f}".format).assign(
        range=[f"{low:+.2f} to {high:+.2f}" for low, high in zip(ranking.low, ranking.high, strict=True)],
        parameters=[f"{params[name]:,}" for name in ranking.index],
    )  # fmt: skip
    raw = raw_means(frame, ranking).map("{:.3f}".format)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>unseen backbones</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{escape(advice_in_words(advice))}</h1>\n<p>{escape(about)}</p>\n"
        f"<figure>{_figure(ranking, tasks)}<figcaption>z-scores: how far a backbone is from the mean of those "
        "compared, in their standard deviations. Another pool gives other scores. Bars: range over seeds."
        "</figcaption></figure>\n"
        f"<h2>Ranking</h2>{_table(numbers)}\n<h2>Raw values, mean over seeds</h2>{_table(raw)}\n</body></html>\n"
    )


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
    head = "".join(f"<th>{escape(str(name))}</th>" for name in ["backbone", *table.columns])
    body = "\n".join(
        f"<tr><td>{escape(str(name))}</td>{''.join(f'<td>{escape(str(v))}</td>' for v in row)}</tr>"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    )
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
