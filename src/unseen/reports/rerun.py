"""Everything that is needed to run a study again: a Python program, settings, data, versions, time."""

from __future__ import annotations

from typing import Any

from unseen.reports.notation import ABSENT
from unseen.studies.results import Results
from unseen.training import Learner


def python_snippet(results: Results) -> str:
    """A program that plans the same cells and runs those that the folder does not hold."""
    plan, source = results.plan, results.plan["shift"]["source"]
    opened = ", ".join(f"{name}={value!r}" for name, value in source.items())
    data = (
        f"shift = open_shift({opened})"
        if source
        else f"shift = ...  # {plan['shift']['name']!r} was made in Python: make it again the same way"
    )
    learners = "".join(f"    {_learner_code(values)},\n" for values in plan["learners"].values())
    options = []
    if len(results.asked) == 1 and results.asked[0]:
        options.append(f"unseen={list(results.asked[0])!r}")
    if plan["after"] is not None:
        options.append(f"after={plan['after']!r}")
    if plan.get("unlabelled") is not None:
        options.append(f"unlabelled={plan['unlabelled']!r}")
    if plan.get("held_out_classes"):
        options.append(f"held_out_classes={plan['held_out_classes']!r}")
    for nearness in ("near", "far"):
        sources = [
            u["source"] for u in plan.get("unfamiliar", []) if u["nearness"] == nearness and u["source"]
        ]
        if sources:
            options.append(f"{nearness}={sources!r}")
    if tuning := plan.get("tuning"):
        again = repr(tuning["source"]) if tuning["source"] else f"...,  # {tuning['name']!r}, made in Python"
        options += [f"tune_detectors={again}", f"tuning_draws={tuning['draws']}"]
    options += [f"{name}={plan[name]!r}" for name in ("seeds", "search", "rule", "detectors", "validation")]
    arguments = "".join(f"    {option},\n" for option in options)
    return (
        "from unseen.shifts.opening import open_shift\n"
        "from unseen.studies import Study\n"
        "from unseen.training import Learner\n\n"
        f"{data}\nlearners = [\n{learners}]\nstudy = Study(\n    shift,\n    learners,\n{arguments})\n"
        'if __name__ == "__main__":\n'
        f"    results = study.run({results.folder.name!r})\n"
    )


def _learner_code(values: dict[str, Any]) -> str:
    """`Learner(...)` with its objective and what else differs from the defaults."""
    learner, default = Learner.from_json(values), Learner()
    changed = {
        name: getattr(learner, name)
        for name in values
        if name == "objective" or getattr(learner, name) != getattr(default, name)
    }
    specs = ("objective", "update", "averaging", "network", "backbone")
    shown = [f"{k}={str(v)!r}" if k in specs and v is not None else f"{k}={v!r}" for k, v in changed.items()]
    return f"Learner({', '.join(shown)})"


def settings_shared(results: Results) -> dict[str, str]:
    """Settings that all learners have in common."""
    learners = _settings(results)
    first = next(iter(learners.values()))
    return {k: v for k, v in first.items() if all(other[k] == v for other in learners.values())}


def settings_apart(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the settings that differ between learners, and their values for each."""
    learners, shared = _settings(results), settings_shared(results)
    names = [k for k in next(iter(learners.values())) if k not in shared]
    return names, [(method, [values[k] for k in names]) for method, values in learners.items()]


def _settings(results: Results) -> dict[str, dict[str, str]]:
    return {method: plain_settings(values) for method, values in results.plan["learners"].items()}


def plain_settings(values: dict[str, Any]) -> dict[str, str]:
    """A learner's settings as text."""
    learner = Learner.from_json(values)
    chosen = {name.replace("_", " "): getattr(learner, name) for name in values}
    return {name: ABSENT if value is None else str(value) for name, value in chosen.items()}


def selected_draws(results: Results) -> list[tuple[str, str, str]]:
    """(method, settings, runs) of every hyperparameter draw that was selected somewhere, when there was a search."""
    if not results.plan["search"]:
        return []
    rows = []
    for method in results.methods:
        mine = results.selected[results.selected.method == method]
        for draw, cells in mine.groupby("draw"):
            title = "as given" if draw == 0 else _learner_code(cells.iloc[0].learner)
            rows.append((method, title, f"{len(cells)} of {len(mine)}"))
    return rows


def time_spent(results: Results) -> list[tuple[str, int, float]]:
    """(learner, runs, seconds of training and judging in all)."""
    done = results.cells[results.cells.status == "done"]
    return [
        (method, int((done.method == method).sum()), float(done.seconds[done.method == method].sum()))
        for method in results.plan["learners"]
    ]
