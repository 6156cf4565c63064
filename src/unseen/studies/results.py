"""What a study found: tables with intervals, comparisons, and the choice of what to deploy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from unseen.errors import InputError
from unseen.measures.accuracy_estimates import agreement, estimate_accuracy
from unseen.studies import detector_tables
from unseen.studies.plan import Rule
from unseen.studies.select import PEEKS, select
from unseen.studies.statistics import (
    Comparison,
    Interval,
    accuracy_interval,
    effective_robustness,
    paired_comparison,
)
from unseen.studies.store import Store
from unseen.training import Learner

PLAIN = "erm"
"""The learner that other learners' robustness is measured against."""


@dataclass(frozen=True)
class Choice:
    """The learner to deploy: `method` by name, `learner` with the hyperparameters that were selected."""

    method: str
    learner: Learner
    reason: str
    scores: dict[str, float]
    """What the choice went by, of every method: the highest (of those judged on every domain) is chosen."""
    against: dict[str, Comparison]
    """Accuracy of the chosen method minus that of each other one, on the same unseen examples and seeds."""


class Results:
    """Read a study folder. Numbers are those of the cells that `rule` selects among hyperparameter draws."""

    def __init__(self, folder: str | Path, rule: Rule | None = None):
        self.folder = Path(folder)
        if not (self.folder / "results.sqlite").is_file():
            raise InputError(
                f"folder {str(folder)!r}", "holds no results.sqlite", "Give a folder that `unseen run` wrote."
            )
        with Store(self.folder / "results.sqlite") as store:
            self.plan: dict[str, Any] = store.fact("plan")
            self.environment: dict[str, Any] = store.fact("environment", {})
            self.labels = np.array(store.fact("labels"))
            self.domain = np.array(store.fact("domain"))
            self.deployed: dict[str, Any] = store.fact("deployed") or {}
            """The deployed model's detector, and how its options were chosen; of a study that the command line ran."""
            group = store.fact("group")
            self.group = None if group is None else np.array(group)
            asked, cells, metrics = set(store.fact("cells")), store.cells(), store.metrics()
        self.cells = cells[cells.cell.isin(asked)]  # the folder may also hold cells of an earlier plan
        self.metrics = metrics[metrics.cell.isin(asked)]
        self.rule: Rule = rule or self.plan["rule"]
        self.asked = [tuple(names) for names in self.plan["unseen"]]
        self.domains: list[str] = self.plan["shift"]["domains"]

    @property
    def methods(self) -> list[str]:
        """Learners that have at least one selected cell, in the order they were asked for."""
        found = set(self.selected.method)
        return [name for name in self.plan["learners"] if name in found]

    @property
    def detectors(self) -> list[str]:
        """Names under which scores are stored: the study's detectors, and "NAME tuned" for those that were tuned."""
        tuning = self.plan.get("tuning") or {}
        return [*self.plan["detectors"], *(f"{name} tuned" for name in tuning.get("detectors", []))]

    @property
    def deployed_detector(self) -> str:
        """The deployed model's detector, "NAME tuned" where it was tuned; knn where none is known."""
        name = self.deployed.get("detector", "knn")
        return f"{name} tuned" if f"{name} tuned" in self.detectors else name

    @cached_property
    def selected(self) -> pd.DataFrame:
        """The selected cell of each (method, unseen, seed)."""
        return select(self.cells, self.metrics, self.rule, self.asked)

    @property
    def peeks(self) -> bool:
        """Whether the selection rule looked at labels of unseen domains."""
        return PEEKS[self.rule]

    @property
    def category(self) -> str:
        """What `worst` in the table is the worst of: "group", or "class" where the data name no groups."""
        return "class" if self.group is None else "group"

    @cached_property
    def failed(self) -> pd.DataFrame:
        """Cells that failed: method, unseen, seed, error."""
        return self.cells[self.cells.status == "failed"][["method", "draw", "unseen", "seed", "error"]]

    def arrays(self, cell: str, *names: str) -> list[np.ndarray]:
        with Store(self.folder / "results.sqlite") as store:
            return [store.array(cell, name) for name in names]

    @cached_property
    def unseen_domains(self) -> list[str]:
        """Domains that were judged as unseen, in the shift's order."""
        rows = self.metrics[(self.metrics.role == "unseen") & (self.metrics.domain != "all")]
        found = set(rows[rows.cell.isin(self.selected.cell)].domain)
        return [name for name in self.domains if name in found]

    @cached_property
    def _outputs(self) -> dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, int]]]:
        """(method, unseen domain) -> per seed: rows, logits, seed."""
        outputs: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, int]]] = {}
        for cell in self.selected.itertuples():
            rows, logits = self.arrays(cell.cell, "unseen/rows", "unseen/logits")
            for index, name in enumerate(self.domains):
                inside = self.domain[rows] == index
                if inside.any():
                    outputs.setdefault((cell.method, name), []).append(
                        (rows[inside], logits[inside], cell.seed)
                    )
        return outputs

    def has(self, method: str, domain: str) -> bool:
        """Whether a run of this method judged this unseen domain (its runs may have failed)."""
        return (method, domain) in self._outputs

    def correct(self, method: str, domain: str) -> np.ndarray:
        """(seeds, examples) bool: was the example of an unseen domain predicted right?"""
        return np.stack(
            [logits.argmax(1) == self.labels[rows] for rows, logits, _ in self._outputs[method, domain]]
        )

    def probabilities(self, method: str, domain: str) -> np.ndarray:
        """(seeds, examples, classes) predicted on an unseen domain."""
        logits = np.stack([logits for _, logits, _ in self._outputs[method, domain]])
        return torch.softmax(torch.from_numpy(logits), -1).numpy()

    def rows(self, domain: str) -> np.ndarray:
        """Row numbers of an unseen domain's examples, as `correct` and `probabilities` order them."""
        return next(self._outputs[m, domain] for m in self.methods if self.has(m, domain))[0][0]

    def _mean(self, cells: pd.Series, role: str, domain: str, metric: str) -> float:
        m = self.metrics
        rows = m[
            m.cell.isin(cells)
            & (m.step == -1)
            & (m.role == role)
            & (m.domain == domain)
            & (m.metric == metric)
        ]
        return float(rows.value.mean()) if len(rows) else float("nan")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a (method, unseen domain): accuracy with 95 % interval, ID accuracy, gap, worst, calibration.

        `worst` is the accuracy of the worst group (of the worst class where the data name no groups) with its
        name and number of examples. A row with domain "average" averages over the unseen domains.
        """
        records = []
        for method in self.methods:
            of_method = self.selected[self.selected.method == method]
            for domain in self.unseen_domains:
                if not self.has(method, domain):
                    continue
                holding = of_method[[domain in names or not names for names in of_method.unseen]].cell
                records.append(self._record(method, domain, holding))
            mine = [r for r in records if r["method"] == method]
            records.append(self._average(method, mine))
        return pd.DataFrame(records)

    def _record(self, method: str, domain: str, cells: pd.Series) -> dict[str, Any]:
        correct = self.correct(method, domain)
        interval = accuracy_interval(correct)
        id_accuracy = self._mean(cells, "validation", "all", "accuracy")
        name, worst, count = self._worst(method, domain, correct)
        return {
            "method": method,
            "domain": domain,
            "accuracy": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "id_accuracy": id_accuracy,
            "gap": id_accuracy - interval.estimate,
            "worst": worst,
            "worst_name": name,
            "worst_n": count,
            "calibration_error": self._mean(cells, "unseen", domain, "calibration error"),
            "seeds": correct.shape[0],
            "n": correct.shape[1],
        }

    def _worst(self, method: str, domain: str, correct: np.ndarray) -> tuple[str, float, int]:
        rows = self.rows(domain)
        if self.group is not None:
            values, names = self.group[rows], self.plan["shift"]["groups"]
        else:
            values, names = self.labels[rows], self.plan["shift"]["classes"]
        found = [
            (float(correct[:, values == v].mean()), names[v], int((values == v).sum()))
            for v in np.unique(values)
        ]
        accuracy, name, count = min(found)
        return name, accuracy, count

    def _average(self, method: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        interval = self.average_accuracy(method)
        worst = min(records, key=lambda r: r["worst"])
        mean = {k: float(np.mean([r[k] for r in records])) for k in ("id_accuracy", "calibration_error")}
        return {
            "method": method,
            "domain": "average",
            "accuracy": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "id_accuracy": mean["id_accuracy"],
            "gap": mean["id_accuracy"] - interval.estimate,
            "worst": worst["worst"],
            "worst_name": f"{worst['domain']}: {worst['worst_name']}",
            "worst_n": worst["worst_n"],
            "calibration_error": mean["calibration_error"],
            "seeds": records[0]["seeds"],
            "n": sum(r["n"] for r in records),
        }

    @cached_property
    def effective_robustness(self) -> pd.DataFrame:
        """Accuracy on an unseen domain above that of plain training with the same ID accuracy: a row a (method,
        unseen domain) with `value` and `references`, the number of ERM runs (all draws and seeds) behind the line.

        Domains are left out whose ERM runs are fewer than 10, or less than 2 points of ID accuracy apart in
        standard deviation: no line can be drawn through them. Taori et al. 2020; see `statistics`.
        """
        plain = self.cells[(self.cells.method == PLAIN) & (self.cells.status == "done")]
        final = self.metrics[(self.metrics.step == -1) & (self.metrics.metric == "accuracy")]
        known = final[(final.role == "validation") & (final.domain == "all")].set_index("cell").value
        records = []
        for domain in self.unseen_domains:
            unseen = final[(final.role == "unseen") & (final.domain == domain)].set_index("cell").value
            pairs = pd.DataFrame({"known": known, "unseen": unseen}).loc[plain.cell].dropna()
            pairs = pairs[((pairs > 0) & (pairs < 1)).all(axis=1)]
            if len(pairs) < 10 or pairs.known.std() < 0.02:
                continue
            rows = self.table[(self.table.domain == domain) & self.table.id_accuracy.between(0, 1, "neither")]
            values = effective_robustness(rows.id_accuracy, rows.accuracy, pairs.known, pairs.unseen)
            records += [
                {"method": m, "domain": domain, "value": float(v), "references": len(pairs)}
                for m, v in zip(rows.method, values, strict=True)
            ]
        return pd.DataFrame(records, columns=["method", "domain", "value", "references"])

    def average_accuracy(self, method: str) -> Interval:
        """Accuracy averaged over unseen domains; the interval speaks of seeds and examples, not of new domains."""
        parts = [
            accuracy_interval(self.correct(method, d)) for d in self.unseen_domains if self.has(method, d)
        ]
        mean = float(np.mean([p.estimate for p in parts]))
        half = [
            np.sqrt(np.sum([(getattr(p, s) - p.estimate) ** 2 for p in parts])) / len(parts)
            for s in ("low", "high")
        ]
        return Interval(mean, mean - half[0], mean + half[1])

    def compare(self, a: str, b: str) -> Comparison:
        """Accuracy of a minus that of b, paired over the seeds and unseen examples that both have.

        All NaN when no seed judged every shared domain with both.
        """
        shared = [d for d in self.unseen_domains if self.has(a, d) and self.has(b, d)]
        seeds = [{seed for *_, seed in self._outputs[m, d]} for m in (a, b) for d in shared]
        common = set.intersection(*seeds) if seeds else set()
        if not common:
            return Comparison(np.nan, np.nan, np.nan, np.nan)
        first, second = (
            np.concatenate([self._correct_of(method, d, common) for d in shared], 1).astype(float)
            for method in (a, b)
        )
        return paired_comparison(first, second)

    def _correct_of(self, method: str, domain: str, seeds: set[int]) -> np.ndarray:
        kept = [seed in seeds for *_, seed in self._outputs[method, domain]]
        return self.correct(method, domain)[kept]

    @cached_property
    def choice(self) -> Choice:
        """The learner to deploy, and why.

        With several held-out sets the model will meet yet another domain, so accuracy on held-out domains is a
        fair guide (leave-one-domain-out cross-validation). With one set only, its labels must not be used:
        the selection rule's score decides. Learners whose runs failed on some domain are chosen only when all
        did: an average over fewer domains is no match for the others.
        """
        if not self.methods:
            errors = self.failed.error.tolist()
            problem = f"has no finished run; the first of {len(errors)} that failed: {errors[0]}"
            raise InputError(f"study {str(self.folder)!r}", problem.rstrip("."))
        if len(self.asked) > 1:
            scores = {m: self.average_accuracy(m).estimate for m in self.methods}
            how = f"highest accuracy averaged over {len(self.unseen_domains)} held-out domains"
        else:
            scores = self.selected.groupby("method").score.mean().to_dict()
            how = f"highest score under the rule {self.rule}" + (" (which peeks)" if self.peeks else "")
        whole = [m for m in self.methods if all(self.has(m, d) for d in self.unseen_domains)]
        method = max(whole or self.methods, key=lambda m: scores[m])
        mine = self.selected[self.selected.method == method]
        draw = mine.groupby("draw").score.agg(["size", "mean"]).sort_values(["size", "mean"]).index[-1]
        learner = Learner.from_json(mine[mine.draw == draw].iloc[0].learner)
        reason = f"{how} ({scores[method]:.3f})"
        return Choice(
            method, learner, reason, scores, {m: self.compare(method, m) for m in self.methods if m != method}
        )

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """Accuracy of the chosen method on unseen domains, estimated without their labels, beside the truth.

        Columns: domain, estimate (name), value, truth, error (value - truth).
        """
        method = self.choice.method
        records = []
        for domain in (d for d in self.unseen_domains if self.has(method, d)):
            truth = float(self.correct(method, domain).mean())
            each = [
                estimate_accuracy(
                    softmax(known["logits"], 1), self.labels[known["rows"]], softmax(new["logits"], 1)
                )
                for known, new in self.chosen_runs(domain)
            ]
            values = pd.DataFrame(each).mean().to_dict()
            probabilities = self.probabilities(method, domain)
            if len(probabilities) > 1:
                values["gde"] = agreement(probabilities[0], probabilities[1])
            for name, value in values.items():
                records.append(
                    {
                        "domain": domain,
                        "estimate": name,
                        "value": value,
                        "truth": truth,
                        "error": value - truth,
                    }
                )
        return pd.DataFrame(records, columns=["domain", "estimate", "value", "truth", "error"])

    @cached_property
    def familiarity(self) -> pd.DataFrame:
        """The chosen method's detectors on each unseen domain; see `detector_tables`."""
        return detector_tables.familiarity(self)

    @cached_property
    def unfamiliar(self) -> pd.DataFrame:
        """The chosen method's detectors on unfamiliar data from near to far; see `detector_tables`."""
        return detector_tables.unfamiliar(self)

    @cached_property
    def tuned(self) -> pd.DataFrame:
        """Options that tuning chose for the chosen method's runs; see `detector_tables`."""
        return detector_tables.tuned(self)

    def judges(self, cell: str, count: int) -> np.ndarray:
        """(count,) bool: rows of ID validation that did not choose options of detectors."""
        if not self.plan.get("tuning"):
            return np.ones(count, dtype=bool)
        return ~self.arrays(cell, "validation/chose")[0]

    def chosen_runs(self, domain: str) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Of each run of the chosen method that judged an unseen domain: rows, logits and familiarity scores of
        ID validation (with `judges`, see `judges`), and of that domain."""
        names = ["rows", "logits", *(f"score/{name}" for name in self.detectors)]
        for cell in self.selected[self.selected.method == self.choice.method].cell:
            known, new = (
                dict(zip(names, self.arrays(cell, *(f"{role}/{name}" for name in names)), strict=True))
                for role in ("validation", "unseen")
            )
            inside = self.domain[new["rows"]] == self.domains.index(domain)
            known["judges"] = self.judges(cell, len(known["rows"]))
            if inside.any():
                yield known, {name: values[inside] for name, values in new.items()}

    def pitfalls(self) -> list[str]:
        """What a careful reader should know before believing the numbers."""
        notes = []
        if self.peeks:
            notes.append(
                "Hyperparameters were selected on labels of the unseen domains (oracle): an upper bound."
            )
        if self.plan["seeds"] < 3:
            seeds = {1: "One seed", 2: "Two seeds"}[self.plan["seeds"]]
            notes.append(f"{seeds} only: differences between learners may be chance.")
        if len(self.asked) > 1 and len(self.methods) > 1:
            notes.append(
                "The learner to deploy was chosen by the accuracies shown: its own number is optimistic by that choice."
            )
        if len(self.asked) == 1 and len(self.unseen_domains) == 1:
            notes.append("One unseen domain: the interval speaks of its examples, not of other new domains.")
        small = self.table[(self.table.domain != "average") & (self.table.worst_n < 30)]
        if len(small):
            row = small.sort_values("worst_n").iloc[0]
            examples = "one example" if row.worst_n == 1 else f"{row.worst_n} examples"
            notes.append(f"The worst {self.category} of {row.domain} ({row.worst_name}) has {examples} only.")
        judged = self.table[self.table.domain != "average"].groupby("method").size()
        for method in judged[judged < len(self.unseen_domains)].index:
            notes.append(
                f"{method} was judged on {judged[method]} of {len(self.unseen_domains)} unseen domains: its average "
                "is not comparable."
            )
        for other in self.plan.get("unfamiliar", []):
            if other["overlap"]:
                notes.append(
                    f"{other['overlap']} of {other['examples']} examples of the unfamiliar data {other['name']!r} are "
                    "also among the familiar ones: no detector can tell these apart."
                )
        if len(self.failed):
            notes.append(f"{len(self.failed)} run(s) failed: {self.failed.iloc[0].error}")
        return notes

    def to_json(self) -> dict[str, Any]:
        """Everything the report shows, as plain values."""
        choice = self.choice
        return {
            "plan": self.plan,
            "environment": self.environment,
            "rule": self.rule,
            "peeks": self.peeks,
            "choice": {
                "method": choice.method,
                "learner": choice.learner.to_json(),
                "reason": choice.reason,
                "against": {m: vars(c) for m, c in choice.against.items()},
            },
            "table": _records(self.table),
            "effective_robustness": _records(self.effective_robustness),
            "estimates": _records(self.estimates),
            "familiarity": _records(self.familiarity),
            "unfamiliar": _records(self.unfamiliar),
            "tuned": _records(self.tuned),
            "deployed": self.deployed,
            "pitfalls": self.pitfalls(),
            "failed": _records(self.failed),
            "cells": {"done": int((self.cells.status == "done").sum()), "failed": len(self.failed)},
        }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))
