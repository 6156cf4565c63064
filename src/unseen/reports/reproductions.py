"""Reproductions of papers in the terminal, and the table of all recorded ones for the documentation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unseen.errors import InputError
from unseen.reports.notation import ABSENT, count, duration

COLUMNS = 6
"""Metrics side by side in a table of the terminal."""

_COLOURS = {"holds": "green", "refuted": "red", "reported": "dim"}


def print_outcome(outcome: Any, console: Console) -> None:
    """Print an `unseen.papers.reproduce.Outcome`: means by condition, then every claim with its verdict."""
    card = outcome.reproduction.card
    console.print(f"\n[bold]{escape(card.title)}[/] [dim]{escape(card.authors)}, {escape(card.venue)}[/]")
    console.print(f"claim    {escape(card.claim)}", highlight=False)
    console.print(f"here     {escape(card.here)}", highlight=False)
    console.print()
    for table in _conditions(outcome):
        console.print(table)
        console.print()
    for name in outcome.summary().columns:
        console.print(
            f"[dim]{escape(name)}: {escape(outcome.reproduction.metrics[name])}[/]", highlight=False
        )
    console.print()
    console.print(_claims(outcome))
    if outcome.unmeasured:
        unmeasured = ", ".join(outcome.unmeasured)
        console.print(f"not measured at {outcome.scale} scale: {escape(unmeasured)}", highlight=False)
    console.print()
    seeds = count(outcome.table.seed.nunique(), "seed")
    colour = _COLOURS.get(outcome.verdict, "yellow")
    console.print(
        f"verdict  [bold {colour}]{escape(outcome.verdict)}[/] "
        f"[dim]({seeds}, {outcome.scale} scale, {duration(outcome.seconds)} of measuring)[/]",
        highlight=False,
    )


def _conditions(outcome: Any) -> list[Table]:
    """Means of the metrics by condition, a few metrics a table."""
    summary = outcome.summary()
    names = list(summary.columns)
    return [
        _means(outcome, summary[names[first : first + COLUMNS]].dropna(how="all"))
        for first in range(0, len(names), COLUMNS)
    ]


def _means(outcome: Any, summary: Any) -> Table:
    roles = {condition.name: condition.role for condition in outcome.reproduction.conditions}
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.add_column("condition", overflow="fold")
    table.add_column("role", style="dim")
    for metric in summary.columns:
        table.add_column(escape(metric), justify="right")
    for name, row in summary.iterrows():
        style = "bold" if roles[name] == "method" else ""
        table.add_row(escape(name), roles[name], *(_number(value) for value in row), style=style)
    return table


def _claims(outcome: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("claim", overflow="fold")
    table.add_column("threshold", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("95 %", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for judgement in outcome.judgements:
        claim = judgement.claim
        verdict = f"[{_COLOURS[judgement.verdict]}]{judgement.verdict}[/]"
        unclear = judgement.verdict != "reported" and not judgement.clear
        table.add_row(
            escape(claim.statement) + (" [dim](control)[/]" if claim.control else ""),
            escape(judgement.threshold),
            _number(judgement.mean),
            _interval(judgement.low, judgement.high),
            verdict + ("[yellow], not clear[/]" if unclear else ""),
        )
    return table


def verdict_table(folder: str | Path) -> str:
    """A Markdown table of the records `NN-name.json` in a folder: a row a paper with its verdict.

    Raises InputError for a folder without records and for a file that is not one.
    """
    lines = ["| paper | verdict | seeds |", "|---|---|---|"]
    for record in _records(folder):
        paper, verdict = record["paper"], f"**{_markdown(record['verdict'])}**"
        title = f"[{paper['number']:02d}](#paper-{paper['number']:02d}) {_markdown(paper['title'])}"
        lines.append(f"| {title} | {verdict} | {len(record['seeds'])} |")
    return "\n".join(lines) + "\n"


def claim_sections(folder: str | Path) -> str:
    """Markdown with a section for each record: the paper's claim, a row for each claim tested, the plot."""
    lines = []
    for record in _records(folder):
        paper = record["paper"]
        title = _markdown(paper["title"])
        if paper.get("arxiv"):
            title = f"[{title}](https://arxiv.org/abs/{paper['arxiv']})"
        stem = f"{paper['number']:02d}-{record['name']}"
        lines += [
            f"## Paper {paper['number']:02d}",
            "",
            f"{title}. {_markdown(record['claim'])}",
            "",
            f"`unseen reproduce {record['name']}`: **{_markdown(record['verdict'])}**, {len(record['seeds'])} seeds.",
            "",
            "| claim | threshold | mean | 95 % interval | verdict |",
            "|---|---|---|---|---|",
            *map(_claim_row, record["claims"]),
            "",
            f"![{stem}]({stem}.svg)",
            "",
        ]
    return "\n".join(lines)


def _records(folder: str | Path) -> list[dict[str, Any]]:
    """The records in a folder, by the number of the paper."""
    paths = sorted(Path(folder).glob("[0-9]*.json"))
    if not paths:
        raise InputError(
            f"folder {str(folder)!r}",
            "holds no records of reproductions",
            "Write some with `unseen reproduce NAME --record FOLDER`.",
        )
    return sorted((_read(path) for path in paths), key=lambda record: record["paper"]["number"])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["paper"]["number"], record["claims"], record["verdict"], record["claim"], record["seeds"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"file {str(path)!r}", f"is no record of a reproduction ({type(error).__name__}: {error})"
        ) from None
    return record


def _claim_row(claim: dict[str, Any]) -> str:
    judged = claim["verdict"] != "reported"
    cells = [
        f"{_markdown(claim['name'])}{' (control)' if claim['control'] else ''}: {_markdown(claim['statement'])}",
        claim["threshold"].replace("<=", "≤").replace(">=", "≥") if judged else "",
        _number(claim["mean"]),
        _interval(claim["low"], claim["high"]),
        claim["verdict"] + (", not clear" if judged and not claim["clear"] else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that cannot break out of its table cell."""
    for mark, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("\n", " ")):
        text = text.replace(mark, safe)
    return text


def _number(value: float | None) -> str:
    return ABSENT if value is None or math.isnan(value) else f"{value:.3g}"


def _interval(low: float | None, high: float | None) -> str:
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{low:.3g}, {high:.3g}]" if known else ""
