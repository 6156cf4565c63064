"""The summary of a study in the terminal: one table, the learner to deploy, what to beware of."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unseen.reports.headline import headline
from unseen.reports.notation import bounds, decimal, percent, points, shortened
from unseen.studies.results import Results

MOST_ROWS = 24
"""With more than this, only the chosen learner is shown domain by domain."""
NARROW = 90
"""Columns of a terminal below which the ID accuracy and the calibration error are left to the report."""


def print_summary(results: Results, console: Console) -> None:
    """Print accuracy with its interval, gap, worst group and calibration error by unseen domain and learner.

    The learner to deploy is marked with an arrow. Raises InputError when no run has finished.
    """
    method = results.choice.method
    rows = _rows(results)
    narrow = console.width < NARROW
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, justify in (
        ("unseen domain", "left"),
        ("  learner", "left"),
        ("accuracy", "right"),
        ("95 %", "left"),
        *(() if narrow else (("ID", "right"),)),
        ("gap", "right"),
        (f"worst {results.category}", "left"),
        *(() if narrow else (("calibration\nerror", "right"),)),
    ):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    names = [(row["domain"], row["method"], row["worst_name"]) for row in rows]
    room = _fitted(
        [max(map(len, column)) for column in zip(*names, strict=True)], console.width - _numbers(narrow)
    )
    previous = None
    for row, shown in zip(rows, names, strict=True):
        domain, learner, worst = (escape(shortened(n, size)) for n, size in zip(shown, room, strict=True))
        chosen = row["method"] == method
        cells = [
            "" if row["domain"] == previous else domain,
            ("[bold green]→[/] " if chosen else "  ") + learner,
            percent(row["accuracy"]),
            bounds(row["low"], row["high"]),
            *([] if narrow else [percent(row["id_accuracy"])]),
            points(row["gap"]),
            f"{percent(row['worst'])} {worst} (n={row['worst_n']})",
            *([] if narrow else [decimal(row["calibration_error"])]),
        ]
        table.add_row(*cells, style="bold" if chosen else "")
        previous = row["domain"]
    console.print()
    console.print(table)
    if len(results.table) > MOST_ROWS:
        console.print("[dim]Other learners by domain: see the report.[/]")
    console.print()
    console.print(_sentences(results))


def _sentences(results: Results) -> Table:
    found = headline(results)
    below = Table.grid(padding=(0, 2))
    below.add_column(no_wrap=True)
    below.add_column()
    below.add_row("[bold]deploy[/]", f"[bold green]{escape(found.method)}[/]")
    comparisons = [comparison.sentence for comparison in found.comparisons[:2]]
    said = [found.expectation, found.spread, found.certainty, *comparisons, found.selection]
    for sentence in filter(None, said):
        below.add_row("", escape(sentence))
    for note in results.pitfalls():
        below.add_row("[yellow]note[/]", escape(note))
    return below


def _rows(results: Results) -> list[dict[str, Any]]:
    """Rows of the table, by domain and then learner; the average last, and only if it averages anything."""
    several = len(results.unseen_domains) > 1
    rows = [row for row in results.table.to_dict("records") if several or row["domain"] != "average"]
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row["domain"] == "average" or row["method"] == results.choice.method]
    order = [*results.unseen_domains, "average"]
    return sorted(rows, key=lambda row: order.index(row["domain"]))


def _numbers(narrow: bool) -> int:
    """Columns that everything but the three names takes: accuracy, interval, gap, worst, n, and the space between."""
    return 8 + 10 + 6 + 18 + 2 + 5 * 2 + (0 if narrow else 6 + 11 + 2 * 2)


def _fitted(lengths: list[int], room: int) -> list[int]:
    """The lengths with the longest cut down until they fit, none below 8."""
    while sum(lengths) > room and max(lengths) > 8:
        lengths[lengths.index(max(lengths))] -= 1
    return lengths
