"""Run a reproduction: resumable unit by unit, judged claim by claim, recorded as JSON and a plot."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import sqlite3
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import unseen
from unseen.errors import InputError, UnseenWarning, nearest
from unseen.papers.base import Judgement, Reproduction, Row, Scale, verdict
from unseen.registry import papers

Report = Callable[[str, int, int], None]
"""Called as report(what is measured next, units done, units in all)."""


@dataclass(frozen=True)
class Outcome:
    """The tidy table (seed, condition, metric, value), a judgement a claim, and the verdict.

    `unmeasured` names claims that ask for what the scale does not measure: a laptop's controls, for example.
    """

    name: str
    reproduction: Reproduction
    table: pd.DataFrame
    judgements: list[Judgement]
    scale: Scale
    seconds: float
    unmeasured: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return verdict(self.judgements)

    def summary(self) -> pd.DataFrame:
        """Mean over seeds: a row a condition, a column a metric, in the order they were declared."""
        table = self.table.pivot_table(index="condition", columns="metric", values="value", aggfunc="mean")
        rows = [c.name for c in self.reproduction.conditions if c.name in table.index]
        return table.loc[rows, [m for m in self.reproduction.metrics if m in table.columns]]

    def to_json(self) -> dict[str, Any]:
        card = self.reproduction.card
        return {
            "name": self.name,
            "paper": {k: getattr(card, k) for k in ("number", "title", "authors", "venue", "arxiv")},
            "claim": card.claim,
            "verdict": self.verdict,
            "scale": self.scale,
            "seeds": sorted(self.table.seed.unique().tolist()),
            "claims": [
                {
                    "name": j.claim.name,
                    "statement": j.claim.statement,
                    "control": j.claim.control,
                    "threshold": j.threshold,
                    "mean": j.mean,
                    "low": j.low,
                    "high": j.high,
                    "verdict": j.verdict,
                    "clear": j.clear,
                }
                for j in self.judgements
            ],
            "unmeasured": list(self.unmeasured),
            "conditions": {c.name: {"role": c.role, "note": c.note} for c in self.reproduction.conditions},
            "metrics": dict(self.reproduction.metrics),
            "rows": self.table.to_dict("records"),
            "seconds": round(self.seconds, 1),
            "made_by": f"unseen {unseen.__version__}, Python {platform.python_version()}",
        }


def reproduce(
    name: str,
    *,
    folder: str | Path = "runs/reproductions",
    seeds: int | None = None,
    scale: Scale = "laptop",
    report: Report | None = None,
) -> Outcome:
    """Measure what is not yet measured in `folder`, then judge every claim.

    seeds  how many seeds, at least 3; default the reproduction's own
    Warns of what the folder holds from other code than the present.
    """
    reproduction: Reproduction = papers.build(name)
    chosen = reproduction.seeds if seeds is None else tuple(range(seeds))
    if len(chosen) < 3:
        raise InputError("seeds", f"are {len(chosen)}", "A verdict needs at least 3.")
    store = Path(folder) / name
    store.mkdir(parents=True, exist_ok=True)
    work = [(unit, seed) for seed in chosen for unit in reproduction.units(scale)]
    path = store / f"{scale}.sqlite"
    with _Measurements(path) as kept:
        if older := kept.from_other_code(work):
            warnings.warn(
                f"{name}: {older} of {len(work)} measurements were made by other code of this library. "
                f"Remove {path} to make them anew.",
                UnseenWarning,
                stacklevel=2,
            )
        for done, (unit, seed) in enumerate(work):
            if not kept.has(unit, seed):
                if report is not None:
                    report(f"{unit}, seed {seed}", done, len(work))
                began = time.perf_counter()
                rows = reproduction.measure(unit, seed, scale)
                _check(name, reproduction, rows)
                kept.add(unit, seed, rows, time.perf_counter() - began)
        if report is not None:
            report("done", len(work), len(work))
        table, seconds = kept.table(work)
    judgements, unmeasured = _judge(reproduction, table, scale)
    return Outcome(name, reproduction, table, judgements, scale, seconds, unmeasured)


def _judge(
    reproduction: Reproduction, table: pd.DataFrame, scale: Scale
) -> tuple[list[Judgement], tuple[str, ...]]:
    judgements, unmeasured = [], []
    for claim in reproduction.claims:
        try:
            judgement = claim.judge(table)
        except LookupError:  # a condition or metric that the table lacks
            if scale != "full":
                raise
            unmeasured.append(claim.name)
        else:
            judgements.append(judgement)
    return judgements, tuple(unmeasured)


def record(outcome: Outcome, folder: str | Path) -> Path:
    """Write NN-name.json and NN-name.svg; returns the JSON's path.

    A plot that shows what a full run has not measured is left out.
    """
    from matplotlib import rc_context

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{outcome.reproduction.card.number:02d}-{outcome.name}"
    plot, text = folder / f".{stem}.svg", folder / f".{stem}.json"
    try:
        figure = outcome.reproduction.plot(outcome.table)
    except LookupError:
        if not outcome.unmeasured:
            raise
    else:
        with rc_context({"svg.hashsalt": stem}):  # the same outcome gives the same file
            figure.savefig(plot, bbox_inches="tight", metadata={"Date": None})
        os.replace(plot, folder / f"{stem}.svg")
    text.write_text(json.dumps(outcome.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(text, folder / f"{stem}.json")
    return folder / f"{stem}.json"


def _check(name: str, reproduction: Reproduction, rows: list[Row]) -> None:
    """Refuse rows that no claim or table could show, before they are kept."""
    declared = {condition.name for condition in reproduction.conditions}
    for row in rows:
        for kind, value, known in (
            ("condition", row.condition, declared),
            ("metric", row.metric, reproduction.metrics),
        ):
            if value not in known:
                raise InputError(f"{kind} {value!r} of {name}", "is not declared", nearest(value, known))
        if math.isnan(row.value):
            raise InputError(f"{row.metric!r} of {row.condition!r} of {name}", "is NaN", "Measure a number.")


class _Measurements:
    """Rows of finished units in SQLite: a unit is there whole or not at all."""

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(path)
        self._connection.executescript(
            "create table if not exists units (unit text, seed integer, seconds real, primary key (unit, seed));"
            "create table if not exists made_by (unit text, seed integer, code text, primary key (unit, seed));"
            "create table if not exists rows (unit text, seed integer, condition text, metric text, value real);"
        )

    def __enter__(self) -> _Measurements:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def has(self, unit: str, seed: int) -> bool:
        found = self._connection.execute("select 1 from units where unit = ? and seed = ?", (unit, seed))
        return found.fetchone() is not None

    def add(self, unit: str, seed: int, rows: list[Row], seconds: float) -> None:
        with self._connection:
            values = (unit, seed, seconds)
            if self._connection.execute("insert or ignore into units values (?, ?, ?)", values).rowcount:
                self._connection.executemany(
                    "insert into rows values (?, ?, ?, ?, ?)", [(unit, seed, *row) for row in rows]
                )
                self._connection.execute("insert into made_by values (?, ?, ?)", (unit, seed, _code()))
            # else another process has measured the same meanwhile

    def from_other_code(self, work: list[tuple[str, int]]) -> int:
        """How many of these are measured, but not by this code."""
        made = self._connection.execute("select unit, seed from made_by where code = ?", (_code(),))
        current = set(made.fetchall())
        return sum(self.has(*item) and item not in current for item in work)

    def table(self, work: list[tuple[str, int]]) -> tuple[pd.DataFrame, float]:
        wanted = set(work)
        found = self._connection.execute("select unit, seed, condition, metric, value from rows").fetchall()
        kept = [row[1:] for row in found if (row[0], row[1]) in wanted]
        times = self._connection.execute("select unit, seed, seconds from units").fetchall()
        seconds = sum(row[2] for row in times if (row[0], row[1]) in wanted)
        return pd.DataFrame(kept, columns=["seed", "condition", "metric", "value"]), seconds


@functools.cache
def _code() -> str:
    """Hash of this library's source."""
    package = Path(unseen.__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return found.hexdigest()
