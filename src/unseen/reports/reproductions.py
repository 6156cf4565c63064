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

_COLOURS = {"holds": "green", "refuted": "red", "reported": "dim"}


def print_outcome(outcome: Any, console: Console) -> None:
    """Print an `unseen.papers.reproduce.Outcome`: means by condition, then every claim with its verdict."""
    card = outcome.reproduction.card
    console.print(f"\n[bold]{escape(card.title)}[/] [dim]{escape(card.authors)}, {escape(card.venue)}[/]")
    console.print(f"claim    {escape(card.claim)}", highlight=False)
    console.print(f"here     {escape(card.here)}", highlight=False)
    console.print()
    console.print(_conditions(outcome))
    for name in outcome.summary().columns:
        console.print(
            f"[dim]{escape(name)}: {escape(outcome.reproduction.metrics[name])}[/]", highlight=False
        )
    console.print()
    console.print(_claims(outcome))
    console.print()
    seeds = count(outcome.table.seed.nunique(), "seed")
    colour = _COLOURS.get(outcome.verdict, "yellow")
    console.print(
        f"verdict  [bold {colour}]{escape(outcome.verdict)}[/] "
        f"[dim]({seeds}, {outcome.scale} scale, {duration(outcome.seconds)} of measuring)[/]",
        highlight=False,
    )


def _conditions(outcome: Any) -> Table:
    summary = outcome.summary()
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
    """A Markdown table of the records `NN-name.json` in a folder, by the number of the paper.

    A row a paper: its claim, the conditions' verdict, and each judged claim's number with interval and
    threshold. Raises InputError for a folder without records and for a file that is not one.
    """
    paths = sorted(Path(folder).glob("[0-9]*.json"))
    if not paths:
        raise InputError(
            f"folder {str(folder)!r}",
            "holds no records of reproductions",
            "Write some with `unseen reproduce NAME --record FOLDER`.",
        )
    records = sorted((_read(path) for path in paths), key=lambda record: record["paper"]["number"])
    lines = [
        "| paper | claim tested | verdict | numbers (95 % interval; threshold) | seeds |",
        "|---|---|---|---|---|",
    ]
    for record in records:
        paper = record["paper"]
        title = f"{paper['number']:02d} {_markdown(paper['title'])}"
        if paper.get("arxiv"):
            title = f"[{title}](https://arxiv.org/abs/{paper['arxiv']})"
        numbers = "<br>".join(_claim_line(claim) for claim in record["claims"])
        verdict = f"**{_markdown(record['verdict'])}**"
        cells = [title, _markdown(record["claim"]), verdict, numbers, str(len(record["seeds"]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["paper"]["number"], record["claims"], record["verdict"], record["claim"], record["seeds"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"file {str(path)!r}", f"is no record of a reproduction ({type(error).__name__}: {error})"
        ) from None
    return record


def _claim_line(claim: dict[str, Any]) -> str:
    number = f"{_number(claim['mean'])} {_interval(claim['low'], claim['high'])}".strip()
    if claim["verdict"] == "reported":
        return f"{_markdown(claim['name'])}: {number}"
    unclear = "" if claim["clear"] else ", not clear"
    threshold = claim["threshold"].replace("<=", "≤").replace(">=", "≥")
    control = " (control)" if claim["control"] else ""
    return f"{_markdown(claim['name'])}{control}: {number}; {threshold}: {claim['verdict']}{unclear}"


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
