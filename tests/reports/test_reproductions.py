import io
import json
from typing import ClassVar

import pandas as pd
import pytest
from rich.console import Console

from unseen.errors import InputError
from unseen.papers.base import Card, Claim, Condition, Reproduction, Row
from unseen.papers.reproduce import Outcome
from unseen.reports.reproductions import claim_sections, print_outcome, verdict_table


def card(number=7):
    return Card(
        number, "Learning [to] | generalize", "Author", "ICLR 2024", "2401.00001",
        claim="The method <helps>.", here="Small data.", not_here="Large.", full="8 GPUs",
    )  # fmt: skip


class Example(Reproduction):
    card = card()
    conditions = (
        Condition("baseline", "baseline"),
        Condition("method", "method", "with [brackets]"),
        Condition("control", "control"),
    )
    metrics: ClassVar = {"accuracy": "share correct, in [0, 1]"}
    claims = (
        Claim("gain", "better than the baseline", value=lambda m: gain(m, "method"), at_least=0.05),
        Claim("null", "the control gains nothing", lambda m: gain(m, "control"), at_most=0.02, control=True),
        Claim("level", "accuracy of the method", lambda m: m["method", "accuracy"]),
    )

    def measure(self, unit, seed, scale):
        values = {"baseline": 0.5, "method": 0.6 + 0.06 * (seed - 1), "control": 0.5 + 0.001 * seed}
        return [Row(name, "accuracy", value) for name, value in values.items()]


def gain(measured, condition):
    return measured[condition, "accuracy"] - measured["baseline", "accuracy"]


@pytest.fixture
def outcome():
    example = Example()
    rows = [(seed, *row) for seed in range(3) for row in example.measure("all", seed, "laptop")]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    return Outcome("example", example, table, [c.judge(table) for c in Example.claims], "laptop", 12.0)


def record(outcome, folder, number=7, **changes):
    content = {**outcome.to_json(), **changes}
    content["paper"] = {**content["paper"], "number": number}
    (folder / f"{number:02d}-example.json").write_text(json.dumps(content))


def test_prints_conditions_claims_and_verdict(outcome):
    console = Console(width=120, file=io.StringIO(), color_system=None)
    print_outcome(outcome, console)
    lines = console.file.getvalue().splitlines()
    assert any(line.split() == ["method", "method", "0.6"] for line in lines)
    gained = next(line for line in lines if "better than the baseline" in line)
    assert ">= 0.05" in gained and "0.1 " in gained and "holds, not clear" in gained
    controlled = next(line for line in lines if "gains nothing" in line)
    assert "(control)" in controlled and controlled.rstrip().endswith("holds")
    assert next(line for line in lines if "accuracy of the method" in line).rstrip().endswith("reported")
    assert any("Learning [to] | generalize" in line for line in lines)
    assert lines[-1] == "verdict  holds (3 seeds, laptop scale, 12 s of measuring)"


def test_table_has_a_row_a_paper_in_order_and_safe_cells(outcome, tmp_path):
    for number in (12, 7):
        record(outcome, tmp_path, number)
    lines = verdict_table(tmp_path).splitlines()
    assert lines[2] == "| [07](#paper-07) Learning [to] \\| generalize | **holds** | 3 |"
    assert lines[3].startswith("| [12](#paper-12) ")


def test_section_has_a_row_a_claim_and_the_plot(outcome, tmp_path):
    record(outcome, tmp_path)
    text = claim_sections(tmp_path)
    assert text.startswith(
        "## Paper 07\n\n[Learning [to] \\| generalize](https://arxiv.org/abs/2401.00001). "
    )
    assert "The method &lt;helps&gt;." in text
    assert "| gain: better than the baseline | ≥ 0.05 | 0.1 | [-0.049, 0.249] | holds, not clear |" in text
    assert "| null (control): the control gains nothing | ≤ 0.02 | 0.001 | [" in text
    assert "| level: accuracy of the method |  | 0.6 | [0.451, 0.749] | reported |" in text
    assert "![07-example](07-example.svg)" in text


def test_folder_without_records_and_other_json_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no records"):
        verdict_table(tmp_path)
    (tmp_path / "03-other.json").write_text("[]")
    with pytest.raises(InputError, match=r"03-other\.json"):
        verdict_table(tmp_path)
