"""The summary of a study in the terminal: one table, the learner to deploy, what to beware of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unseen.reports.headline import headline
from unseen.reports.notation import bounds, decimal, percent, points, shortened
from unseen.studies.plan import DETECTORS
from unseen.studies.results import Results

MOST_ROWS = 24
"""With more than this, only the chosen learner is shown domain by domain."""
SHORTEST_NAME = 8
SET_WIDTH = 18
"""Of a set of unfamiliar inputs: AUROC and its bounds."""
ORDER = {"shifted": 0, "near": 1, "far": 2}
WIDE = 90
"""From so many columns on, ID accuracy and the size of the worst group are shown, too."""


@dataclass(frozen=True)
class Column:
    """`cell` writes a row; `width` is what it takes beside a name; narrower terminals leave the column out."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    width: int
    justify: Literal["left", "right"] = "right"
    least_terminal: int = 0


def print_summary(results: Results, console: Console) -> None:
    """Print accuracy with its interval, gap, worst group and calibration error by unseen domain and learner.

    The learner to deploy is marked with an arrow. Long names are cut, and narrow terminals show less.
    Raises InputError when no run has finished.
    """
    console.print()
    console.print(_table(results, console.width))
    if len(results.table) > MOST_ROWS:
        console.print("[dim]Other learners by domain: see the report.[/]")
    asked_for = set(results.detectors) not in (set(), set(DETECTORS))
    if results.plan.get("unfamiliar") or asked_for:
        console.print()
        table, left_out = _unfamiliar(results, console.width)
        console.print(table)
        if left_out:
            console.print(f"[dim]{escape(', '.join(left_out))}: see the report.[/]")
    if tuning := results.plan.get("tuning"):
        runs = results.tuned.groupby("detector").runs.sum()
        best = results.tuned.drop_duplicates("detector")
        chosen = "; ".join(f"{t.chosen} in {t.runs} of {runs[t.detector]} runs" for t in best.itertuples())
        console.print(f"[dim]Tuned on {escape(tuning['name'])}: {escape(chosen)}.[/]")
    console.print()
    console.print(_sentences(results))


def _table(results: Results, width: int) -> Table:
    chosen = results.choice.method
    columns = [column for column in _columns(results, width) if width >= column.least_terminal]
    rows = _rows(results)
    names = ["domain", "method", *(["worst_name"] if any("worst" in c.title for c in columns) else [])]
    room = width - sum(c.width for c in columns) - 2 * (len(columns) - 1)
    lengths = _fitted([max(len(row[name]) for row in rows) for name in names], room)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.title, justify=column.justify, no_wrap=True)
    previous = None
    for row in rows:
        short = {name: shortened(row[name], length) for name, length in zip(names, lengths, strict=True)}
        shown = {**row, **short, "arrow": "→ " if row["method"] == chosen else "  "}
        if row["domain"] == previous:
            shown["domain"] = ""
        style = "bold" if row["method"] == chosen else ""
        table.add_row(*(escape(column.cell(shown)) for column in columns), style=style)
        previous = row["domain"]
    return table


def _unfamiliar(results: Results, width: int) -> tuple[Table, list[str]]:
    """AUROC of every detector on the sets of unfamiliar inputs that fit, the best in bold; and the other sets."""
    frame = results.unfamiliar
    frame = frame.assign(title=frame.set + " (" + frame.nearness + ")")
    titles = list(
        dict.fromkeys(frame.sort_values("nearness", key=lambda n: n.map(ORDER), kind="stable").title)
    )
    names = list(dict.fromkeys(frame.detector))
    longest = max(map(len, names))
    fitting = max(1, (width - longest) // (SET_WIDTH + 2))
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left", title_style="")
    table.add_column("AUROC, 95 %", no_wrap=True)
    for title in titles[:fitting]:
        table.add_column(escape(title), width=SET_WIDTH)
    found = {(row.detector, row.title): row for row in frame.itertuples()}
    best = {title: max(row.auroc for (_, t), row in found.items() if t == title) for title in titles}
    means = frame.groupby("detector").auroc.mean()
    for name in sorted(names, key=lambda each: -means[each]):
        cells = []
        for title in titles[:fitting]:
            row = found[name, title]
            text = f"{percent(row.auroc)}  {bounds(row.auroc_low, row.auroc_high)}"
            cells.append(f"[bold]{text}[/]" if row.auroc == best[title] else text)
        table.add_row(escape(name), *cells)
    return table, titles[fitting:]


def _columns(results: Results, width: int) -> tuple[Column, ...]:
    def worst(row: dict[str, Any]) -> str:
        count = f" (n={row['worst_n']})" if width >= WIDE else ""
        return f"{percent(row['worst'])} {row['worst_name']}{count}"

    return (
        Column("unseen domain", lambda r: r["domain"], 0, "left"),
        Column("  learner", lambda r: r["arrow"] + r["method"], 2, "left"),
        Column("accuracy", lambda r: percent(r["accuracy"]), 8),
        Column("95 %", lambda r: bounds(r["low"], r["high"]), 10, "left"),
        Column("ID", lambda r: percent(r["id_accuracy"]), 6, least_terminal=WIDE),
        Column("gap", lambda r: points(r["gap"]), 6),
        Column(f"worst {results.category}", worst, 16 if width >= WIDE else 7, "left", least_terminal=75),
        Column("calib.\nerror", lambda r: decimal(r["calibration_error"]), 6, least_terminal=75),
    )


def _rows(results: Results) -> list[dict[str, Any]]:
    """Rows of the table, by domain and then learner; the average last, and only if it averages anything."""
    several = len(results.unseen_domains) > 1
    rows = [row for row in results.table.to_dict("records") if several or row["domain"] != "average"]
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row["domain"] == "average" or row["method"] == results.choice.method]
    order = [*results.unseen_domains, "average"]
    return sorted(rows, key=lambda row: order.index(row["domain"]))


def _fitted(lengths: list[int], room: int) -> list[int]:
    """The lengths with the longest cut down until they fit, none below `SHORTEST_NAME`."""
    while sum(lengths) > room and max(lengths) > SHORTEST_NAME:
        lengths[lengths.index(max(lengths))] -= 1
    return lengths


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
