"""Where a study keeps its results: one SQLite file. A cell is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unseen.errors import InputError
from unseen.studies.plan import Cell

SCHEMA = """
create table if not exists facts (name text primary key, value text);
create table if not exists cells (
    cell text primary key, method text, learner text, draw integer, unseen text, seed integer,
    status text, error text, seconds real, facts text);
create table if not exists metrics (
    cell text, step integer, role text, domain text, category text, metric text, value real, n integer);
create table if not exists arrays (cell text, name text, dtype text, shape text, data blob,
    primary key (cell, name));
create index if not exists metrics_of_cell on metrics (cell);
"""


@dataclass
class CellResult:
    """What running a cell gives.

    metrics  records with step, role, domain, category (a class or group, or ""), metric, value, n
    arrays   per-example outputs by name, such as "unseen/logits" (N, C) and "unseen/rows" (N,)
    error    the message of a run that failed, else ""
    """

    cell: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


class Store:
    """Results of a study's cells, safe against being killed at any moment; many may read while one writes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._connection = sqlite3.connect(self.path, timeout=30)
            self._connection.execute("pragma journal_mode = wal")
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"results file {str(path)!r}", f"cannot be used ({error})") from None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction."""
        try:
            with self._connection:
                yield
        except sqlite3.Error as error:
            raise InputError(
                f"results file {str(self.path)!r}",
                f"cannot be written ({error})",
                "Make room or choose another folder; what was finished before is kept.",
            ) from None

    def write_fact(self, name: str, value: Any) -> None:
        with self._writing():
            self._connection.execute("insert or replace into facts values (?, ?)", (name, json.dumps(value)))

    def fact(self, name: str, default: Any = None) -> Any:
        found = self._connection.execute("select value from facts where name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def finished(self) -> set[str]:
        """Keys of the cells that are done (or have failed for good)."""
        return {row[0] for row in self._connection.execute("select cell from cells")}

    def add(self, results: Iterable[tuple[Cell, CellResult]]) -> None:
        """Write finished cells in one transaction."""
        with self._writing():
            for cell, result in results:
                self._connection.execute(
                    "insert or replace into cells values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        cell.key,
                        cell.method,
                        json.dumps(cell.learner.to_json()),
                        cell.draw,
                        json.dumps(cell.unseen),
                        cell.seed,
                        "failed" if result.error else "done",
                        result.error,
                        result.seconds,
                        json.dumps(result.facts),
                    ),
                )
                self._connection.executemany(
                    "insert into metrics values (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            cell.key, m.get("step", -1), m["role"], m["domain"], m.get("category", ""),
                            m["metric"], m["value"], m["n"],
                        )
                        for m in result.metrics
                    ],
                )  # fmt: skip
                self._connection.executemany(
                    "insert or replace into arrays values (?, ?, ?, ?, ?)",
                    [
                        (cell.key, name, str(array.dtype), json.dumps(array.shape), array.tobytes())
                        for name, array in result.arrays.items()
                    ],
                )

    def cells(self) -> pd.DataFrame:
        """One row a cell: cell, method, learner, draw, unseen (tuple), seed, status, error, seconds, facts."""
        frame = pd.read_sql("select * from cells", self._connection)
        for name in ("learner", "unseen", "facts"):
            frame[name] = [json.loads(value) for value in frame[name]]
        frame["unseen"] = [tuple(names) for names in frame["unseen"]]
        return frame

    def metrics(self) -> pd.DataFrame:
        """The tidy table: cell, step (-1 = final), role, domain, category, metric, value, n."""
        return pd.read_sql("select * from metrics", self._connection)

    def array(self, cell: str, name: str) -> np.ndarray:
        found = self._connection.execute(
            "select dtype, shape, data from arrays where cell = ? and name = ?", (cell, name)
        ).fetchone()
        if found is None:
            raise InputError(f"array {name!r} of cell {cell!r}", "is not in the results")
        return np.frombuffer(found[2], dtype=found[0]).reshape(json.loads(found[1]))
