"""The pages of docs/ that are made from the registries and from the records: `make docs` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from unseen.registry import REGISTRIES, Entry, objectives
from unseen.reports.reproductions import claim_sections, verdict_table

METHODS, REPRODUCTIONS, BENCHMARKS = "methods.md", "reproductions/README.md", "benchmarks.md"
LEARNING = ("objectives", "updates", "averaging")
"""The kinds that are part of a learner: their pages say what a method needs and what its step costs."""


def methods_page(docs: str | Path = "docs") -> str:
    """Markdown of everything registered: a table a kind, with options and their defaults; steps' costs are those
    of the benchmarks page in `docs`."""
    benchmarks = Path(docs) / BENCHMARKS
    costs = _costs(benchmarks.read_text(encoding="utf-8")) if benchmarks.exists() else {}
    lines = [
        "# What there is",
        "",
        "Made by `make docs` from the registries; `unseen list` prints the same. Cost is a step's CPU time over that",
        "of ERM as [measured](benchmarks.md): a perceptron 392-390-390-390, two domains of 64 examples, one thread.",
        "Methods that share a file are settings of one engine.",
        "",
    ]
    for kind in REGISTRIES:
        columns = ["name", "what it is", "options", "paper"]
        if kind in LEARNING:
            columns[2:2] = ["needs", "cost", "file"] if kind == "objectives" else ["cost", "file"]
        lines += [f"## {kind}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for entry in entries(kind):
            shown = {
                "name": f"`{entry.name}`",
                "what it is": entry.summary,
                "needs": _needs(entry) if kind == "objectives" else "",
                "cost": costs.get(entry.name, ""),
                "file": entry.target.__module__.removeprefix("unseen.").replace(".", "/") + ".py",
                "options": _options(entry),
                "paper": entry.paper,
            }
            lines.append(f"| {' | '.join(shown[column] for column in columns)} |")
        lines.append("")
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def reproductions_page(folder: str | Path) -> str:
    """Markdown of the records in docs/reproductions, with each plot."""
    lines = [
        "# Reproductions",
        "",
        "Made by `make docs` from the records beside this page. Thresholds stand in the code and were fixed before",
        "the results. A refuted claim stays. A control takes the claimed cause away.",
        "",
        verdict_table(folder),
        claim_sections(folder),
    ]
    return "\n".join(lines)


def write_documents(docs: str | Path = "docs") -> list[Path]:
    """Write the pages below `docs`; returns their paths."""
    docs = Path(docs)
    pages = {METHODS: methods_page(docs), REPRODUCTIONS: reproductions_page(docs / "reproductions")}
    for name, text in pages.items():
        (docs / name).write_text(text)
    return [docs / name for name in pages]


def _costs(benchmarks: str) -> dict[str, str]:
    """Method -> its step over an ERM step, from the table of the benchmarks page."""
    found = re.findall(
        r"^\| (\S+) step: MLP 392-390-390-390, 2 x 64 \| ([\d.]+) \| x ERM", benchmarks, re.MULTILINE
    )
    return {"erm": "1", **dict(found)}


def _needs(entry: Entry) -> str:
    objective = objectives.build(entry.name)
    needs = {
        "several domains": objective.needs_domains,
        "features to train": objective.needs_features,
        "unlabelled examples": objective.needs_unlabelled,
        "outliers": objective.needs_outliers,
    }
    return ", ".join(what for what, needed in needs.items() if needed)


def entries(kind: str) -> list[Entry]:
    """What this library registers itself: neither plug-ins nor what reproductions need for themselves."""
    found = [e for e in REGISTRIES[kind] if e.target.__module__.startswith("unseen.")]
    return [e for e in found if kind == "papers" or not e.target.__module__.startswith("unseen.papers.")]


def _options(entry: Entry) -> str:
    shown = {
        name: value for name, value in entry.options().items() if value is not None or name in entry.search
    }
    return ", ".join(f"{name}={value!r}" for name, value in shown.items()).replace("|", "\\|")


if __name__ == "__main__":
    for path in write_documents():
        print(path)
