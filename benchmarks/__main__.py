"""Run benchmarks and print their tables: `python -m benchmarks [NAME ...] [--json FILE] [--markdown FILE]`.

A benchmark is a module with `run(quick=False) -> rows` (quick: tiny, for tests); a row is a dict with

  what, value, unit   what was measured
  reference, ratio    what it is compared with in the same run (or None), and reference / value
  target              None; a number: the ratio is at least that; or a text "<= 0.5": the value is at most that
  recorded            (optional) a published figure, measured elsewhere: for orientation only
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import benchmarks
import unseen

Row = dict[str, Any]
COLUMNS = ("what", "value", "unit", "compared with", "ratio", "target", "met", "recorded elsewhere")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed, beside peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch, default 1")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")

    torch.set_num_threads(options.threads)
    console, found, began = Console(), {}, time.perf_counter()
    for name in track(options.names or names(), description="measuring", console=console, transient=True):
        found[name] = importlib.import_module(f"benchmarks.{name}").run()
        console.print(table(name, found[name]), "")
    conditions = machine(options.threads, time.perf_counter() - began)
    console.print(conditions, highlight=False)
    if options.json is not None:
        _write(options.json, json.dumps({"machine": conditions, "benchmarks": found}, indent=1) + "\n")
    if options.markdown is not None:
        _write(options.markdown, markdown(found, conditions))


def names() -> list[str]:
    """Modules of this package that measure something."""
    modules = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "__main__"]
    return [name for name in modules if hasattr(importlib.import_module(f"benchmarks.{name}"), "run")]


def met(row: Row) -> bool | None:
    """Whether a row reaches its target; None without one."""
    target = row.get("target")
    if target is None:
        return None
    if isinstance(target, str):
        return row["value"] <= float(target.removeprefix("<="))
    return row["ratio"] is not None and row["ratio"] >= target


def cells(row: Row) -> list[str]:
    """The row as texts, in the order of `COLUMNS`."""
    target, reached = row.get("target"), met(row)
    return [
        row["what"],
        _number(row["value"]),
        row["unit"],
        _number(row["reference"]),
        "" if row["ratio"] is None else f"{_number(row['ratio'])}x",
        "" if target is None else target if isinstance(target, str) else f"{_number(target)}x",
        {None: "", True: "yes", False: "no"}[reached],
        _number(row.get("recorded")),
    ]


def table(name: str, rows: list[Row]) -> Table:
    found = Table(title=f"{name}: {_title(name)}", title_justify="left", box=None, pad_edge=False)
    header, lines = _filled(rows)
    for column in header:
        found.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for row, line in zip(rows, lines, strict=True):
        found.add_row(*line, style={None: "", True: "green", False: "red"}[met(row)])
    return found


def markdown(found: dict[str, list[Row]], conditions: str) -> str:
    """All tables as one page."""
    parts = [
        "# Benchmarks\n",
        "Written by `python -m benchmarks --markdown docs/benchmarks.md`. Values that are compared were measured "
        "in the same run; the best of several rounds counts. Targets are a least ratio (20x) or a greatest value "
        "(<= 0.5). Where the load exceeds the cores, others shared caches and time: small differences are noise.\n",
        f"{conditions}\n",
    ]
    for name, rows in found.items():
        header, lines = _filled(rows)
        rule = ["---" if column in ("what", "unit") else "---:" for column in header]
        parts.append(f"## {name}\n\n{_documentation(name)}\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + "\n")
    return "\n".join(parts)


def machine(threads: int, seconds: float) -> str:
    """One line on where and when this was measured."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores{load}, {threads} thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}, unseen {unseen.__version__}; "
        f"{seconds / 60:.1f} minutes"
    )


def _filled(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns that hold anything, and their cells row by row."""
    lines = [cells(row) for row in rows]
    kept = [index for index in range(len(COLUMNS)) if any(line[index] for line in lines)]
    return [COLUMNS[index] for index in kept], [[line[index] for index in kept] for line in lines]


def _documentation(name: str) -> str:
    return inspect.getdoc(importlib.import_module(f"benchmarks.{name}")) or ""


def _title(name: str) -> str:
    return _documentation(name).split("\n")[0]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    main()
