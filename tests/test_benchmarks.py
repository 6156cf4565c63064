"""Every benchmark runs and gives rows of the declared shape. Nothing here looks at how long anything took."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are beside the package, not in it

from benchmarks import __main__ as command
from benchmarks import merging_llama
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


def test_a_process_is_watched_to_its_end():
    megabytes = "import time; kept = bytearray(b'1') * (200 << 20); time.sleep(0.2)"
    found = merging_llama.watched([sys.executable, "-c", megabytes])
    assert 200 < found.private <= found.resident < 400
    assert found.seconds > 0 and found.memory[0][2] < 200
    assert [row[0] for row in found.memory] == sorted(row[0] for row in found.memory)
    with pytest.raises(RuntimeError, match="no such model"):
        merging_llama.watched([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_memory_is_drawn_resident_and_private(tmp_path):
    runs = {"one": merging_llama.Run(1.0, [(0.0, 5.0, 3.0), (1.0, 9.0, 4.0)])}
    figure = merging_llama.draw(runs)
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert lines == [[5.0, 9.0], [3.0, 4.0]]


def test_a_made_llama_has_the_size_it_says_and_loads(tmp_path):
    from unseen.merging import open_checkpoint

    size = merging_llama.Llama(64, 128, 256, 2)
    found = open_checkpoint(size.write(tmp_path / "model", 0))
    assert {name: info.shape for name, info in found.tensors.items()} == size.shapes()
    assert sum(info.bytes for info in found.tensors.values()) == size.bytes
    other = open_checkpoint(size.write(tmp_path / "other", 1))
    name = "model.layers.1.mlp.down_proj.weight"
    apart = (found.read(name).float() - other.read(name).float()).std() / found.read(name).float().std()
    assert 0.05 < apart < 0.5  # as near as two tunings of one model
