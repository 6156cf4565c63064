"""The pages of docs/ that are made from the registries and from the records: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path

from unseen.registry import REGISTRIES, Entry
from unseen.reports.reproductions import verdict_table

METHODS, REPRODUCTIONS = "methods.md", "reproductions/README.md"


def methods_page() -> str:
    """Markdown of everything registered: a table a kind, with options and their defaults."""
    lines = [
        "# What there is",
        "",
        "Made by `make docs` from the registries; `unseen list` prints the same.",
        "",
    ]
    for kind, registry in REGISTRIES.items():
        lines += [f"## {kind}", "", "| name | what it is | options | paper |", "|---|---|---|---|"]
        for entry in registry:
            lines.append(f"| `{entry.name}` | {entry.summary} | {_options(entry)} | {entry.paper} |")
        lines.append("")
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def reproductions_page(folder: str | Path) -> str:
    """Markdown of the records in docs/reproductions, with each plot."""
    folder = Path(folder)
    lines = [
        "# Reproductions",
        "",
        "Made by `make docs` from the records beside this page. Thresholds stand in the code and were fixed before",
        "the results. A refuted claim stays. A control takes the claimed cause away.",
        "",
        verdict_table(folder),
    ]
    for plot in sorted(folder.glob("[0-9]*.svg")):
        lines.append(f"![{plot.stem}]({plot.name})\n")
    return "\n".join(lines)


def write_documents(docs: str | Path = "docs") -> list[Path]:
    """Write the pages below `docs`; returns their paths."""
    docs = Path(docs)
    pages = {METHODS: methods_page(), REPRODUCTIONS: reproductions_page(docs / "reproductions")}
    for name, text in pages.items():
        (docs / name).write_text(text)
    return [docs / name for name in pages]


def _options(entry: Entry) -> str:
    shown = {
        name: value for name, value in entry.options().items() if value is not None or name in entry.search
    }
    return ", ".join(f"{name}={value!r}" for name, value in shown.items()).replace("|", "\\|")


if __name__ == "__main__":
    for path in write_documents():
        print(path)
