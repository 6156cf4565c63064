import numpy as np
import pytest

from unseen.reports.rerun import python_snippet, selected_draws, settings_apart, settings_shared, time_spent
from unseen.training import Learner


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unseen": ["north"], "search": 1},
        {"after": 17, "detectors": ["energy"]},
        {"after": 17, "unseen": ["north"]},
    ],
)
def test_snippet_plans_the_very_same_runs(run_study, options, make_shift):
    learners = ["erm", Learner(objective="irm(penalty_weight=10)", update="sam", steps=5, clip=1.0)]
    shift = make_shift(time=np.arange(72) % 24, source={"source": "my file.csv", "label": "it's"})
    results, _ = run_study(shift, learners, seeds=1, **options)
    program = python_snippet(results)
    assert "open_shift(source='my file.csv', label=\"it's\")" in program
    scope = {"open_shift": lambda **source: shift, "__name__": "not main"}
    exec(program.replace("from unseen.shifts.opening import open_shift\n", ""), scope)
    assert {cell.key for cell in scope["study"].plan.cells} == set(results.cells.cell)


def test_snippet_says_when_the_data_have_no_name(study):
    assert "'clinics' was made in Python" in python_snippet(study[0])


def test_settings_are_split_into_shared_and_apart(study):
    results, _ = study
    names, rows = settings_apart(results)
    assert names == ["objective"]
    assert rows == [("erm", ["erm"]), ("irm", ["irm"])]
    assert settings_shared(results)["steps"] == "6" and "objective" not in settings_shared(results)


def test_selected_draws_cover_every_selected_run(run_study, make_shift):
    results, _ = run_study(make_shift(), ["erm"], search=2, seeds=1)
    draws = selected_draws(results)
    assert sum(int(runs.split(" of ")[0]) for *_, runs in draws) == len(results.selected) == 3


def test_no_draws_without_a_search(study):
    assert selected_draws(study[0]) == []


def test_time_counts_every_finished_run(study):
    results, _ = study
    assert [(name, runs) for name, runs, _ in time_spent(results)] == [("erm", 6), ("irm", 6)]
    assert sum(seconds for *_, seconds in time_spent(results)) == pytest.approx(results.cells.seconds.sum())
