"""Every backbone on every task with every seed, at the same budget; a killed comparison goes on where it was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from unseen.arena.backbones import Candidate, candidate
from unseen.arena.measures import higher_is_better
from unseen.arena.protocols import Budget, Score, Task
from unseen.arena.store import ScoreStore
from unseen.errors import InputError

Report = Callable[[str, int, int], None]
"""Called as report(what is measured next, runs done, runs in all)."""


class BackboneArena:
    """Compare backbones (Goldblum et al. 2023).

    backbones  candidates or names of them, or {name: nn.Module on raw inputs, candidate or name}
    tasks      see `unseen.arena.protocols`; all must read what the backbones read
    budget     learning rates and steps that every backbone gets for each task and seed
    seeds      each draws training, validation and test rows, initial heads and the order of examples anew
    Raises InputError for two backbones of one name, two tasks that would give the same key, or mixed inputs.
    """

    def __init__(
        self,
        backbones: Iterable[str | Candidate] | Mapping[str, str | Candidate | nn.Module],
        tasks: Sequence[Task],
        budget: Budget | None = None,
        seeds: Sequence[int] = (0, 1, 2),
    ):
        self.candidates = _candidates(backbones)
        self.tasks, self.budget, self.seeds = list(tasks), budget or Budget(), tuple(seeds)
        if not self.candidates or not self.tasks or not self.seeds:
            raise InputError("arena", "has no backbone, task or seed", "Give at least one of each.")
        _require_distinct("backbone", [c.name for c in self.candidates])
        _require_distinct("task", [f"{task.group}: {task.setting}" for task in self.tasks])
        _require_distinct("seed", [str(seed) for seed in self.seeds])
        for entrant in self.candidates:
            for task in self.tasks:
                if task.reads != entrant.reads:
                    raise InputError(
                        f"backbone {entrant.name!r}",
                        f"reads {entrant.reads}s, but task {task.setting!r} holds {task.reads}s",
                        "Compare backbones on inputs that all of them read.",
                    )

    def run(self, store: str | Path | None = None, report: Report | None = None) -> pd.DataFrame:
        """The tidy results: a row a (backbone, task, setting, metric, seed).

        store   SQLite file in which finished runs are kept and looked up; None keeps nothing
        Columns: backbone, task, setting, metric, higher_is_better, seed, value (raw), chosen, and the backbone's
        architecture, objective, data_size, params, flops, features. Raises InputError for a score that is NaN.
        """
        rows: list[dict[str, Any]] = []
        total = len(self.candidates) * len(self.tasks) * len(self.seeds)
        with ScoreStore(":memory:" if store is None else store) as kept:
            for entrant in self.candidates:
                attributes = entrant.attributes(self.tasks[0].example)
                for task in self.tasks:
                    for seed in self.seeds:
                        if report is not None:
                            done = len({(r["backbone"], r["run"]) for r in rows})
                            report(f"{entrant.name}: {task.group}", done, total)
                        run = self._run_key(entrant, task, seed)
                        scores = kept.scores(run)
                        if scores is None:
                            scores = task.measure(entrant, self.budget, seed)
                            _check(scores, entrant, task)
                            kept.add(run, scores)
                        rows += [_row(entrant, task, seed, run, score) | attributes for score in scores]
                entrant.forget()
        if report is not None:
            report("done", total, total)
        return pd.DataFrame(rows).drop(columns="run")

    def _run_key(self, entrant: Candidate, task: Task, seed: int) -> str:
        """Hash of everything that decides the scores of a run."""
        parts = (entrant.fingerprint, task.group, task.identity, repr(self.budget), str(seed))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _candidates(backbones: Any) -> list[Candidate]:
    if not isinstance(backbones, Mapping):
        return [candidate(each) for each in backbones]
    found = []
    for name, each in backbones.items():
        made = Candidate(name, each) if isinstance(each, nn.Module) else candidate(each)
        made.name = name
        found.append(made)
    return found


def _row(entrant: Candidate, task: Task, seed: int, run: str, score: Score) -> dict[str, Any]:
    return {
        "run": f"{run} {seed}",
        "backbone": entrant.name,
        "task": task.group,
        "setting": score.setting,
        "metric": score.metric,
        "higher_is_better": higher_is_better(score.metric),
        "seed": seed,
        "value": score.value,
        "chosen": score.chosen,
    }


def _check(scores: list[Score], entrant: Candidate, task: Task) -> None:
    for score in scores:
        higher_is_better(score.metric)
        if not math.isfinite(score.value):
            problem = f"is {score.value} for {score.metric} of {task.setting!r}"
            raise InputError(f"score of backbone {entrant.name!r}", problem, "Look at its features.")


def _require_distinct(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{what} {name!r}", "is there twice", "Two runs would have the same key: rename one."
            )
