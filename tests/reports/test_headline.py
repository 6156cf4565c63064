import math
from types import SimpleNamespace

import pandas as pd
import pytest

from unseen.reports.headline import headline
from unseen.studies.statistics import Comparison


def results(against: dict[str, Comparison], domains=("a", "b"), **changes):
    """What `headline` reads of Results, with numbers of our choosing; "chosen" is the choice."""
    names = ["chosen", *against]
    plain = {"name": "plain"}
    learners = {
        n: {"objective": {"name": "erm" if n == "erm" else "irm"}, "update": plain, "averaging": None}
        for n in names
    }
    row = {"method": "chosen", "low": 0.6, "high": 0.8, "id_accuracy": 0.9, "seeds": 3, "n": 50}
    table = [{**row, "domain": d, "accuracy": 0.6 + 0.2 * i} for i, d in enumerate(domains)]
    average = {**row, "domain": "average", "accuracy": 0.7, "n": 50 * len(domains)}
    scores = {n: 1 - 0.1 * i for i, n in enumerate(names)}
    values = {
        "choice": SimpleNamespace(method="chosen", against=against, scores=scores, reason="highest accuracy"),
        "methods": names,
        "table": pd.DataFrame([*table, average]),
        "unseen_domains": list(domains),
        "asked": [(d,) for d in domains],
        "rule": "id-validation",
        "peeks": False,
        "plan": {"learners": learners, "search": 0, "after": None},
    }
    return SimpleNamespace(**{**values, **changes})


CLEAR, UNCLEAR = Comparison(0.05, 0.03, 0.07, 0.001), Comparison(0.01, -0.02, 0.04, 0.4)


def test_expectation_has_interval_seeds_examples_and_spread():
    found = headline(results({"erm": CLEAR}))
    assert "accuracy 70.0% (95% interval 60.0–80.0; averaged over 2 domains, 3 seeds, 100 examples)" in (
        found.expectation
    )
    assert "from 60.0% (a) to 80.0% (b)" in found.spread
    assert headline(results({}, domains=("a",))).spread == ""


def test_what_cannot_be_told_apart_is_said_plainly():
    assert (
        headline(results({"erm": UNCLEAR})).certainty == "It is not distinguishable from erm by these data."
    )
    assert "any of the others" in headline(results({n: UNCLEAR for n in "abc"})).certainty
    assert "better than the other" in headline(results({"erm": CLEAR})).certainty
    mixed = headline(results({"erm": CLEAR, "coral": UNCLEAR})).certainty
    assert "not distinguishable from coral" in mixed and "better than the rest" in mixed


def test_many_comparisons_ask_for_more():
    """p = 0.04 alone is clear; as the smallest of two, Holm doubles it."""
    alone, two = Comparison(0.05, 0.01, 0.09, 0.04), {"erm": Comparison(0.05, 0.01, 0.09, 0.04), "x": UNCLEAR}
    assert headline(results({"erm": alone})).comparisons[0].clear
    first = headline(results(two)).comparisons[0]
    assert first.adjusted == pytest.approx(0.08) and not first.clear


def test_comparison_without_a_test_is_not_clear():
    nothing = Comparison(0.02, math.nan, math.nan, math.nan)
    first = headline(results({"erm": nothing})).comparisons[0]
    assert first.verdict == "not distinguishable" and "interval" not in first.sentence


def test_erm_comes_first_and_roles_are_named():
    comparisons = headline(results({"coral": CLEAR, "erm": CLEAR})).comparisons
    assert [(c.other, c.role) for c in comparisons] == [("erm", "plain ERM"), ("coral", "the runner-up")]


def test_choice_that_is_worse_on_unseen_labels_is_explained():
    worse = Comparison(-0.05, -0.07, -0.03, 0.001)
    assert "choosing by their labels would be peeking" in headline(results({"erm": worse})).certainty


def test_selection_says_whether_the_rule_peeks():
    searched = {"learners": results({}).plan["learners"], "search": 4, "after": None}
    honest = headline(results({}, plan=searched)).selection
    assert "best of 5 draws by id-validation, which never looks" in honest
    peeking = headline(results({}, plan=searched, peeks=True, rule="oracle")).selection
    assert "oracle, which looks at labels of the unseen domains" in peeking
