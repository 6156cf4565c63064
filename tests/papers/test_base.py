import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unseen.errors import InputError, UnseenWarning
from unseen.papers.base import Card, Claim, Condition, Reproduction, Row, by_seed, verdict
from unseen.papers.reproduce import record, reproduce
from unseen.registry import papers

CARD = Card(99, "A toy", "Nobody", "Nowhere", "0000.00000", "It gains.", "Numbers.", "All else.", "The same.")


def table(gains):
    """One method and one baseline of accuracy 0.5; the method's gain a seed is given."""
    rows = [(seed, "plain", "accuracy", 0.5) for seed in range(len(gains))]
    rows += [(seed, "method", "accuracy", 0.5 + gain) for seed, gain in enumerate(gains)]
    return pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])


def gain(measured):
    return measured["method", "accuracy"] - measured["plain", "accuracy"]


GAINS = Claim("gains", "The method is better.", value=gain, at_least=0.1)


@pytest.mark.parametrize(
    ("gains", "at_least", "at_most", "expected", "clear"),
    [
        ([0.3, 0.31, 0.32], 0.1, None, "holds", True),
        ([0.05, 0.15, 0.25], 0.1, None, "holds", False),
        ([0.01, 0.02, 0.03], 0.1, None, "refuted", True),
        ([0.3, 0.31, 0.32], None, 0.1, "refuted", True),
        ([0.0, 0.01, 0.02], None, 0.1, "holds", True),
        ([0.2, 0.2, 0.2], 0.2 - 1e-9, 0.2 + 1e-9, "holds", True),
        # both ends fail on different sides while the mean lies between the thresholds
        ([-0.5, 0.2, 0.9], 0.1, 0.3, "holds", False),
        ([0.05, 0.15, 0.25], None, None, "reported", True),
    ],
)
def test_the_verdict_goes_by_the_mean_and_clear_by_the_interval(gains, at_least, at_most, expected, clear):
    judgement = replace(GAINS, at_least=at_least, at_most=at_most).judge(table(gains))
    assert (judgement.verdict, judgement.clear) == (expected, clear)
    assert judgement.mean == pytest.approx(np.mean(gains))
    assert judgement.low <= judgement.mean <= judgement.high


def test_the_interval_of_a_claim_is_students_over_its_seeds():
    judgement = GAINS.judge(table([0.1, 0.2, 0.3]))
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert (judgement.low, judgement.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)


def test_thresholds_are_written_as_in_a_formula():
    assert GAINS.judge(table([0.1] * 3)).threshold == ">= 0.1"
    both = replace(GAINS, at_most=0.25)
    assert both.judge(table([0.1] * 3)).threshold == ">= 0.1 and <= 0.25"
    assert replace(GAINS, at_least=None).judge(table([0.1] * 3)).threshold == "-"


def test_a_pooled_claim_sees_all_seeds_and_resamples_them():
    seen = []

    def spread(rows):
        seen.append(sorted(rows.seed.unique()))
        per_seed = [gain(measured) for measured in by_seed(rows).values()]
        return max(per_seed) - min(per_seed)

    judgement = Claim("spread", "Seeds differ.", pooled=spread, at_most=0.5).judge(table([0.0, 0.1, 0.4]))
    assert judgement.mean == pytest.approx(0.4)
    assert judgement.low == 0 and judgement.high == pytest.approx(0.4)
    assert all(seeds == [0, 1, 2] for seeds in seen)  # a seed drawn twice counts as two seeds
    again = Claim("spread", "Seeds differ.", pooled=spread, at_most=0.5).judge(table([0.0, 0.1, 0.4]))
    assert (again.low, again.high) == (judgement.low, judgement.high)


def test_a_claim_needs_a_number():
    with pytest.raises(InputError, match="neither value nor pooled"):
        Claim("empty", "Nothing.").judge(table([0.1] * 3))


def test_verdict_of_the_whole():
    rows = table([0.2, 0.2, 0.2])
    holds, fails = GAINS.judge(rows), replace(GAINS, at_least=0.3).judge(rows)
    reported = replace(GAINS, at_least=None).judge(rows)
    control = replace(GAINS, control=True).judge(rows)
    failed_control = replace(GAINS, at_least=0.3, control=True).judge(rows)
    assert verdict([holds, holds, reported, control]) == "holds"
    assert verdict([fails, reported, control]) == "refuted"
    assert verdict([reported, control]) == "no claim is judged"
    assert verdict([holds, fails, control]) == "holds in part (1 of 2 claims)"
    assert verdict([holds, fails, fails, control]) == "refuted in part (2 of 3 claims)"
    assert verdict([holds, control, failed_control]) == "in doubt: a control failed"


class Toy(Reproduction):
    """Two units a seed; `calls` remembers what was measured, `fails_at` makes one of them fail once."""

    card = CARD
    conditions = (Condition("plain", "baseline"), Condition("method", "method", "with the trick"))
    metrics = {"accuracy": "share of right answers"}  # noqa: RUF012
    claims = (GAINS, Claim("method", "Its accuracy.", value=lambda m: m["method", "accuracy"]))
    calls: list[tuple[str, int, str]] = []  # noqa: RUF012
    fails_at: tuple[str, int] | None = None

    def units(self, scale):
        return ["plain", "method"]

    def measure(self, unit, seed, scale):
        type(self).calls.append((unit, seed, scale))
        if (unit, seed) == self.fails_at:
            raise KeyboardInterrupt
        return [Row(unit, "accuracy", 0.5 + 0.2 * (unit == "method") + 0.01 * seed)]

    def plot(self, table):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.add_subplot().plot(table.value)
        return figure


@pytest.fixture
def toy(monkeypatch):
    """The toy under a registered name of its own, forgotten after the test."""
    papers.names()
    monkeypatch.setattr(papers, "_entries", dict(papers._entries))
    fresh = type("FreshToy", (Toy,), {"calls": []})
    papers.register("toy", summary="A toy.", paper="none")(fresh)
    return fresh


def test_reproduce_measures_every_unit_of_every_seed_and_judges(toy, tmp_path):
    reports = []
    outcome = reproduce("toy", folder=tmp_path, report=lambda *told: reports.append(told))
    assert toy.calls == [(unit, seed, "laptop") for seed in range(3) for unit in ("plain", "method")]
    assert reports[0] == ("plain, seed 0", 0, 6) and reports[-1] == ("done", 6, 6)
    assert [judgement.verdict for judgement in outcome.judgements] == ["holds", "reported"]
    assert outcome.judgements[0].mean == pytest.approx(0.2) and outcome.verdict == "holds"
    assert outcome.judgements[1].mean == pytest.approx(0.71)
    summary = outcome.summary()
    assert list(summary.index) == ["plain", "method"]
    assert summary.accuracy["plain"] == pytest.approx(0.51)


def test_what_is_measured_is_not_measured_again(toy, tmp_path):
    first = reproduce("toy", folder=tmp_path)
    second = reproduce("toy", folder=tmp_path)
    assert len(toy.calls) == 6
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.seconds == second.seconds
    more = reproduce("toy", folder=tmp_path, seeds=4)
    assert toy.calls[6:] == [("plain", 3, "laptop"), ("method", 3, "laptop")]
    assert sorted(more.table.seed.unique()) == [0, 1, 2, 3]
    # fewer seeds again: the fourth is kept, but is no part of the answer
    assert sorted(reproduce("toy", folder=tmp_path).table.seed.unique()) == [0, 1, 2]


def test_measurements_of_other_code_are_told(toy, tmp_path, monkeypatch, recwarn):
    reproduce("toy", folder=tmp_path)
    reproduce("toy", folder=tmp_path)
    assert not recwarn.list
    monkeypatch.setattr("unseen.papers.reproduce._code", lambda: "changed")
    with pytest.warns(UnseenWarning, match=r"toy: 6 of 8 measurements were made by other code"):
        reproduce("toy", folder=tmp_path, seeds=4)
    assert len(toy.calls) == 8


def test_scales_are_kept_apart(toy, tmp_path):
    reproduce("toy", folder=tmp_path)
    outcome = reproduce("toy", folder=tmp_path, scale="full")
    assert [scale for *_, scale in toy.calls] == ["laptop"] * 6 + ["full"] * 6
    assert outcome.scale == "full" and len(outcome.table) == 6


def test_a_full_run_leaves_out_claims_on_what_it_does_not_measure(toy, tmp_path):
    toy.units = lambda self, scale: ["method"] if scale == "full" else ["plain", "method"]
    toy.plot = lambda self, table: table.set_index("condition").loc["plain"]
    outcome = reproduce("toy", folder=tmp_path, scale="full")
    assert outcome.unmeasured == ("gains",) and [j.claim.name for j in outcome.judgements] == ["method"]
    assert outcome.verdict == "no claim is judged"
    written = json.loads(record(outcome, tmp_path / "docs").read_text())
    assert written["unmeasured"] == ["gains"] and not (tmp_path / "docs" / "99-toy.svg").exists()
    toy.units = lambda self, scale: ["method"]
    with pytest.raises(KeyError):  # at a laptop's scale it is a mistake
        reproduce("toy", folder=tmp_path / "other")


def test_killed_in_the_middle_finished_units_are_kept(toy, tmp_path):
    toy.fails_at = ("plain", 1)
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", folder=tmp_path)
    assert len(toy.calls) == 3
    toy.fails_at = None
    outcome = reproduce("toy", folder=tmp_path)
    assert [call[:2] for call in toy.calls[3:]] == [
        ("plain", 1),
        ("method", 1),
        ("plain", 2),
        ("method", 2),
    ]
    assert len(outcome.table) == 6


def test_two_runs_at_once_keep_each_unit_once(toy, tmp_path):
    slow = toy.measure

    def overtaken(self, unit, seed, scale):
        if len(toy.calls) == 0:
            toy.measure = slow
            reproduce("toy", folder=tmp_path)  # another run finishes everything while this one measures
        return slow(self, unit, seed, scale)

    toy.measure = overtaken
    outcome = reproduce("toy", folder=tmp_path)
    assert len(toy.calls) == 7 and len(outcome.table) == 6


def test_fewer_than_three_seeds_give_no_verdict(toy, tmp_path):
    with pytest.raises(InputError, match="at least 3"):
        reproduce("toy", folder=tmp_path, seeds=2)
    toy.seeds = (0, 1)
    with pytest.raises(InputError, match="at least 3"):
        reproduce("toy", folder=tmp_path)
    assert not toy.calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (Row("metod", "accuracy", 0.5), "'metod' of toy: is not declared. Did you mean 'method'"),
        (Row("method", "acuracy", 0.5), "'acuracy' of toy: is not declared. Did you mean 'accuracy'"),
        (Row("method", "accuracy", math.nan), "'accuracy' of 'method' of toy: is NaN"),
    ],
)
def test_rows_that_no_claim_could_use_are_refused_before_they_are_kept(toy, tmp_path, row, named):
    right = toy.measure
    toy.measure = lambda self, unit, seed, scale: [row]
    with pytest.raises(InputError, match=re.escape(named)):
        reproduce("toy", folder=tmp_path)
    toy.measure = right
    assert len(reproduce("toy", folder=tmp_path).table) == len(toy.calls) == 6


def test_record_writes_json_and_plot(toy, tmp_path):
    outcome = reproduce("toy", folder=tmp_path / "runs")
    path = record(outcome, tmp_path / "docs")
    assert sorted(file.name for file in (tmp_path / "docs").iterdir()) == ["99-toy.json", "99-toy.svg"]
    assert path == tmp_path / "docs" / "99-toy.json"
    written = json.loads(path.read_text())
    assert written["verdict"] == "holds" and written["seeds"] == [0, 1, 2] and written["scale"] == "laptop"
    assert written["paper"]["title"] == "A toy"
    claim = written["claims"][0]
    assert (claim["verdict"], claim["threshold"], claim["control"]) == ("holds", ">= 0.1", False)
    assert claim["mean"] == pytest.approx(0.2) and claim["low"] <= claim["mean"] <= claim["high"]
    assert written["conditions"]["method"] == {"role": "method", "note": "with the trick"}
    assert pd.DataFrame(written["rows"]).equals(outcome.table)
    plot = (tmp_path / "docs" / "99-toy.svg").read_bytes()
    assert plot.rstrip().endswith(b"</svg>")
    record(outcome, tmp_path / "docs")
    assert (tmp_path / "docs" / "99-toy.svg").read_bytes() == plot  # the same outcome, the same file
