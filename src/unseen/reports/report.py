"""The report of a study: one HTML file that opens offline, without scripts, and its numbers as JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

import unseen
from unseen.errors import InputError
from unseen.registry import Spec
from unseen.reports import notation, plots, rerun, trust
from unseen.reports.failures import DomainMistakes, confident_mistakes
from unseen.reports.headline import headline
from unseen.shifts import Shift
from unseen.studies.results import Results
from unseen.studies.statistics import mean_interval

DETECTOR = "knn"
"""The detector whose histograms are shown when none is named: the one that `unseen run` deploys."""
OPEN_ROWS = 24
"""A long table with more rows than this starts folded."""


def write_report(
    results: Results, shift: Shift | None, folder: str | Path, *, detector: str = DETECTOR
) -> Path:
    """Write `report.html` and `report.json` into `folder`; returns the path of the HTML file.

    shift     the study's data, to show examples that fail; None leaves them out
    detector  the deployed detector; when the study did not score it, its first one is shown

    Raises InputError when no run of the study has finished.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {str(folder)!r}", f"cannot be written ({error.strerror})") from None
    html = render(results, shift, detector=detector)
    numbers = json.dumps(_finite(results.to_json()), indent=1, allow_nan=False)
    _write(folder / "report.json", numbers + "\n")
    _write(folder / "report.html", html)
    return folder / "report.html"


def render(results: Results, shift: Shift | None, *, detector: str = DETECTOR) -> str:
    """The page as text; the same results give the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, domains and columns are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "points", "decimal", "p_value", "duration", "count", "listed"):
        environment.filters[name] = getattr(notation, name)
    environment.filters["interval"] = lambda row: notation.bounds(row["low"], row["high"])
    environment.globals["bounds"] = notation.bounds
    return environment.get_template("report.html.j2").render(**_contents(results, shift, detector)) + "\n"


def _contents(results: Results, shift: Shift | None, detector: str) -> dict[str, Any]:
    method = results.choice.method
    scored = results.detectors
    shown_detector = detector if detector in scored else (scored[0] if scored else None)
    pairs = trust.run_outputs(results, method, shown_detector)
    calibration_figure, calibration_rows = trust.calibration(pairs)
    abstention_figure, abstention_rows = trust.abstention(pairs, shown_detector)
    mistakes, mistakes_missing = _mistakes(results, shift)
    shared, (apart_names, apart_rows) = rerun.settings_shared(results), rerun.settings_apart(results)
    return {
        "version": unseen.__version__,
        "results": results,
        "plan": results.plan,
        "method": method,
        "headline": headline(results),
        "average": _average(results, method),
        "pitfalls": results.pitfalls(),
        "category": results.category,
        "accuracy_figure": _accuracy_figure(results),
        "domain_figure": _domain_figure(results),
        "matrix": _matrix(results),
        "judged": {m: _judged(results, m) for m in results.methods},
        "rows": results.table.to_dict("records"),
        "robustness": results.effective_robustness.set_index(["method", "domain"]).value.to_dict(),
        "references": results.effective_robustness.references.min(),
        "open_rows": OPEN_ROWS,
        "estimates": _estimates(results),
        "calibration_figure": calibration_figure,
        "calibration_rows": calibration_rows,
        "abstention_figure": abstention_figure,
        "abstention_rows": abstention_rows,
        "abstention_coverages": trust.SHOWN_COVERAGES,
        "detector": shown_detector,
        "coverage": trust.COVERAGE,
        "histograms": trust.familiarity(results, pairs),
        "detectors": _detectors(results),
        "familiarity_rows": results.familiarity.to_dict("records"),
        "unfamiliar": unfamiliar_sets(results),
        "unfamiliar_detectors": list(
            results.unfamiliar.groupby("detector").auroc.mean().sort_values().index[::-1]
        ),
        "tuning": results.plan.get("tuning"),
        "tuned": results.tuned.to_dict("records"),
        "tuned_deployed": _tuned_deployed(results),
        "kinds": {"shifted": "same classes", "near": "near", "far": "far"},
        "mistakes": mistakes,
        "mistakes_missing": mistakes_missing,
        "training": _training(results),
        "command": results.environment.get("command", ""),
        "snippet": rerun.python_snippet(results),
        "shared": shared,
        "apart_names": apart_names,
        "apart_rows": apart_rows,
        "deployed": rerun.plain_settings(results.choice.learner.to_json()),
        "draws": rerun.selected_draws(results),
        "time": rerun.time_spent(results),
        "failed": results.failed.to_dict("records"),
    }


def _average(results: Results, method: str) -> dict[str, Any]:
    return results.table[results.table.method == method].iloc[-1].to_dict()


def _by_score(results: Results) -> list[str]:
    return sorted(results.methods, key=lambda m: -results.average_accuracy(m).estimate)


def _judged(results: Results, method: str) -> int:
    """On how many unseen domains a learner was judged: fewer than all when runs failed."""
    return sum(results.has(method, domain) for domain in results.unseen_domains)


def _accuracy_figure(results: Results) -> str:
    rows, domains = [], len(results.unseen_domains)
    for method in _by_score(results):
        judged = _judged(results, method)
        unseen_accuracy = results.average_accuracy(method)
        rows.append(
            plots.Dots(
                method if judged == domains else f"{method} ({judged} of {domains})",
                _id_interval(results, method),
                (unseen_accuracy.estimate, unseen_accuracy.low, unseen_accuracy.high),
                method == results.choice.method,
            )
        )
    return plots.accuracy_dots("accuracy", "ID and unseen accuracy of every learner", rows)


def _id_interval(results: Results, method: str) -> tuple[float, float, float]:
    """ID validation accuracy with an interval over seeds: every seed draws other validation examples."""
    mine = results.selected[results.selected.method == method][["cell", "seed"]]
    m = results.metrics
    final = m[(m.step == -1) & (m.role == "validation") & (m.domain == "all") & (m.metric == "accuracy")]
    interval = mean_interval(final.merge(mine, on="cell").groupby("seed").value.mean().to_numpy())
    return interval.estimate, interval.low, interval.high


def _domain_figure(results: Results) -> str:
    """The chosen learner on every unseen domain; empty when there is one."""
    table = results.table
    rows = table[(table.method == results.choice.method) & (table.domain != "average")]
    if len(rows) < 2:
        return ""
    nothing = float("nan")
    dots = [
        plots.Dots(r.domain, (r.id_accuracy, nothing, nothing), (r.accuracy, r.low, r.high))
        for r in rows.sort_values("accuracy", ascending=False, kind="stable").itertuples()
    ]
    return plots.accuracy_dots("domains", "Accuracy of the chosen learner on every unseen domain", dots)


def _matrix(results: Results) -> list[dict[str, Any]]:
    """A row an unseen domain (and the average), a cell a learner: None where its runs failed."""
    found = {(r["method"], r["domain"]): r for r in results.table.to_dict("records")}
    domains = [*results.unseen_domains, *(["average"] if len(results.unseen_domains) > 1 else [])]
    rows = []
    for domain in domains:
        cells = [found.get((method, domain)) for method in results.methods]
        best = max(cell["accuracy"] for cell in cells if cell)
        rows.append({"domain": domain, "cells": cells, "best": best})
    return rows


def _estimates(results: Results) -> dict[str, Any] | None:
    """Label-free estimates by domain, their figure and their mean absolute errors, the best first."""
    table = results.estimates
    if table.empty:
        return None
    summary = (
        table.assign(bias=table.error, error=table.error.abs())
        .groupby("estimate")[["error", "bias"]]
        .mean()
        .sort_values("error")
    )
    wide = table.pivot(index="domain", columns="estimate", values="value")[list(summary.index)]
    truth = table.groupby("domain").truth.first()
    domains = [d for d in results.unseen_domains if d in wide.index]
    figure = plots.estimate_dots(
        "estimates",
        domains,
        truth[domains].tolist(),
        {n: wide.loc[domains, n].tolist() for n in wide.columns},
    )
    rows = [(domain, truth[domain], wide.loc[domain].tolist()) for domain in domains]
    return {"summary": summary.reset_index().to_dict("records"), "rows": rows, "figure": figure}


def _detectors(results: Results) -> list[dict[str, Any]]:
    """Every detector averaged over the unseen domains, by AUROC."""
    table = results.familiarity
    if table.empty:
        return []
    means = table.drop(columns="domain").groupby("detector").mean().sort_values("auroc", ascending=False)
    return means.reset_index().to_dict("records")


def unfamiliar_sets(results: Results) -> list[dict[str, Any]]:
    """Of each set of unfamiliar inputs, the nearest first: name, nearness, n, and a row a detector, the best first."""
    order = ("shifted", "near", "far")
    found = []
    for (name, nearness), rows in results.unfamiliar.groupby(["set", "nearness"], sort=False):
        ranked = rows.sort_values("auroc", ascending=False, kind="stable").to_dict("records")
        by_detector = {row["detector"]: row for row in ranked}
        found.append(
            {
                "name": name,
                "nearness": nearness,
                "n": ranked[0]["n"],
                "rows": ranked,
                "by_detector": by_detector,
            }
        )
    return sorted(found, key=lambda each: order.index(each["nearness"]))


def _tuned_deployed(results: Results) -> dict[str, Any] | None:
    """The options that were chosen for the model to deploy; None where its detector was not tuned."""
    found = results.deployed
    return {**found, "chosen": str(Spec.of(found["spec"]))} if "spec" in found else None


def _mistakes(results: Results, shift: Shift | None) -> tuple[list[DomainMistakes], str]:
    """Confident mistakes by domain, or why none are shown."""
    if shift is None:
        return [], "The data were not at hand when this report was written."
    if shift.fingerprint != results.plan["shift"]["fingerprint"]:
        return [], "The data have changed since the study was run, so its mistakes cannot be looked up."
    found = confident_mistakes(results, shift, results.choice.method)
    return found, "" if found else "Every unseen example was predicted right."


def _training(results: Results) -> list[tuple[str, str]]:
    """(learner, figure) of ID validation accuracy by step, averaged over domains, on one scale."""
    m = results.metrics
    rows = m[(m.step >= 0) & (m.role == "validation") & (m.metric == "accuracy")]
    rows = rows.merge(results.selected[["cell", "method"]], on="cell")
    runs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for (method, _), run in rows.groupby(["method", "cell"]):
        curve = run.groupby("step").value.mean()
        runs.setdefault(method, []).append((curve.index.to_numpy() + 1, curve.to_numpy()))
    lowest = min((float(accuracy.min()) for each in runs.values() for _, accuracy in each), default=0.0)
    return [
        (method, plots.training_curves(f"training-{i}", method, runs[method], max(-0.02, lowest - 0.05)))
        for i, method in enumerate(results.methods)
        if method in runs
    ]


def _finite(value: Any) -> Any:
    """The same plain values with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
