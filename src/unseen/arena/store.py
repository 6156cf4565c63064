"""Scores of the arena on disk: one SQLite file, in which a run of one backbone on one task is whole or absent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from unseen.arena.protocols import Score
from unseen.errors import InputError

_SCHEMA = """
create table if not exists runs (run text primary key);
create table if not exists scores (
    run text, setting text, metric text, value real, chosen text, primary key (run, setting, metric));
"""


class ScoreStore:
    """Scores by run, the hash of everything that decides them. ":memory:" keeps them for one process."""

    def __init__(self, path: str | Path = ":memory:"):
        self.path = path
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=30)
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"scores file {str(path)!r}", f"cannot be used ({error})") from None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scores(self, run: str) -> list[Score] | None:
        """Scores of a finished run in the order they were measured, None when it has not been finished."""
        if self._connection.execute("select 1 from runs where run = ?", (run,)).fetchone() is None:
            return None
        rows = self._connection.execute(
            "select setting, metric, value, chosen from scores where run = ? order by rowid", (run,)
        )
        return [Score(*row) for row in rows]

    def add(self, run: str, scores: Iterable[Score]) -> None:
        """Write a finished run in one transaction. Raises InputError for a run or a score that is there already."""
        try:
            with self._connection:
                self._connection.execute("insert into runs values (?)", (run,))
                self._connection.executemany(
                    "insert into scores values (?, ?, ?, ?, ?)", [(run, *score) for score in scores]
                )
        except sqlite3.IntegrityError:
            raise InputError(f"run {run!r}", "has a score twice", "Give each setting a name.") from None
        except sqlite3.Error as error:
            remedy = "Make room or choose another folder; what was finished before is kept."
            raise InputError(
                f"scores file {str(self.path)!r}", f"cannot be written ({error})", remedy
            ) from None
