"""What `unseen measure` leaves behind: measure.html and measure.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

import unseen
from unseen.reports.page import html_page, html_table, write_texts
from unseen.reports.svg import GRID, ID, MUTED, drawing, to_svg
from unseen.studies.measuring import Section


def write_sections(sections: Sequence[Section], folder: str | Path, facts: dict[str, Any]) -> Path:
    """Write both files; gives the page. measure.json comes last, and has all numbers."""
    record = {
        "library": f"unseen {unseen.__version__}",
        **facts,
        **{
            each.name: {"rows": json.loads(each.table.to_json(orient="records")), **each.facts}
            for each in sections
        },
    }
    body = "\n".join(map(_html, sections))
    page = html_page("unseen measure", f"Measures of {facts['source']}", facts, body)
    write_texts(folder, {"measure.html": page, "measure.json": json.dumps(record, indent=1) + "\n"})
    return Path(folder) / "measure.html"


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Names of columns and texts of rows; an interval's bounds stand in the cell of their value."""
    bounded = {c for c in table if f"{c} low" in table and f"{c} high" in table}
    names = [str(c) for c in table if not any(str(c) in (f"{b} low", f"{b} high") for b in bounded)]
    rows = []
    for _, row in table.iterrows():
        texts = []
        for name in names:
            text = _text(row[name])
            low, high = (row.get(f"{name} {end}", math.nan) for end in ("low", "high"))
            bounds = "" if name not in bounded or low != low else f" [{_text(low, 2)}, {_text(high, 2)}]"
            texts.append(text + bounds)
        rows.append(texts)
    return names, rows


def _text(value: Any, digits: int = 3) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return "-"
    if isinstance(value, (int, np.integer)) or (abs(value) >= 1000 and value != math.inf):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if abs(value) < 5e-4:
        return f"{value:.0e}"
    return f"{value:.{digits}g}" if abs(value) >= 1 else f"{value:.{digits}f}"


def _html(section: Section) -> str:
    names, rows = cells(section.table)
    words = [name for name in names if not is_numeric_dtype(section.table[name])]
    figure = "" if section.bars is None or len(section.table) < 2 else f"{_figure(section)}\n"
    return (
        f"<h2>{escape(section.title)}</h2>\n<figure>{figure}{html_table(names, rows, words)}"
        f"<figcaption>{escape(section.note)}</figcaption></figure>"
    )


def _figure(section: Section) -> str:
    assert section.bars is not None
    column, value = section.bars
    table = section.table
    names = table[column] if column in table else table["first"] + " / " + table["second"]
    rows = np.arange(len(table))[::-1]
    with drawing(900, 70 + 26 * len(table)) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1)
        if f"{value} low" in table:
            axes.hlines(rows, table[f"{value} low"], table[f"{value} high"], color=ID, linewidth=2)
        axes.plot(table[value], rows, "o", color=ID, markersize=7)
        axes.set_yticks(rows, [str(name) for name in names])
        axes.set(xlabel=value, ylim=(-0.6, len(table) - 0.4))
        axes.grid(color=GRID)
        described = "; ".join(f"{name}: {v:.3g}" for name, v in zip(names, table[value], strict=True))
        return to_svg(figure, f"measure-{section.name}", section.title, described)
