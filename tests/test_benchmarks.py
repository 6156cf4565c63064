"""Every benchmark runs and gives rows of the declared shape. Nothing here looks at how long anything took."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are beside the package, not in it

from benchmarks import __main__ as command
from benchmarks.timing import compare

NAMES = command.names()


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_declared_shape(name):
    rows = importlib.import_module(f"benchmarks.{name}").run(quick=True)
    assert rows
    assert len({row["what"] for row in rows}) == len(rows)
    for row in rows:
        assert {"what", "value", "unit", "reference", "ratio", "target"} <= set(row)
        assert math.isfinite(row["value"])
        assert (row["reference"] is None) == (row["ratio"] is None)
        if row["reference"] is not None and row["value"]:
            assert row["ratio"] == pytest.approx(row["reference"] / row["value"], rel=0.1, abs=0.01)
        assert command.met(row) in (None, True, False)
        assert len(command.cells(row)) == len(command.COLUMNS)


@pytest.mark.parametrize(
    "target, value, ratio, reached",
    [
        (None, 1.0, 9.0, None),
        (2, 1.0, 2.0, True),
        (2, 1.0, 1.9, False),
        (2, 1.0, None, False),
        ("<= 0.5", 0.5, None, True),
        ("<= 0.5", 0.6, 9.0, False),
    ],
)
def test_targets_are_a_least_ratio_or_a_greatest_value(target, value, ratio, reached):
    assert command.met({"value": value, "ratio": ratio, "target": target}) is reached


def test_the_command_writes_json_and_markdown(tmp_path, monkeypatch, capsys):
    row = {"what": "thing", "value": 0.25, "unit": "s", "reference": 1.0, "ratio": 4.0, "target": 5}
    monkeypatch.setattr(importlib.import_module("benchmarks.attention"), "run", lambda: [row])
    command.main(["attention", "--json", str(tmp_path / "rows"), "--markdown", str(tmp_path / "page")])
    assert json.loads((tmp_path / "rows").read_text())["benchmarks"] == {"attention": [row]}
    assert "| thing | 0.25 | s | 1 | 4x | 5x | no |" in (tmp_path / "page").read_text()
    assert "thing" in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["atention"])
    assert "attention" in capsys.readouterr().err


def test_works_are_visited_in_turns_and_the_best_counts():
    visited, now = [], [0.0]
    durations = {"a": iter([9.0, 9.0, 5.0, 3.0]), "b": iter([1.0, 2.0, 2.0, 4.0])}

    def work(name):
        visited.append(name)
        now[0] += next(durations[name])

    best = compare(
        {name: lambda name=name: work(name) for name in "ab"}, rounds=2, seconds=0.0, clock=lambda: now[0]
    )
    assert "".join(visited) == "aabbabba"  # two calls to warm up, then A B, B A
    assert best == {"a": 3.0, "b": 2.0}
