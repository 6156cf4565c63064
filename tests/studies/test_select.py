import pandas as pd
import pytest

from unseen.studies.select import select, selection_scores

CELLS = pd.DataFrame(
    [
        # method, draw, unseen, seed
        ("m0", "m", 0, ("a",), 0, "done"),
        ("m1", "m", 1, ("a",), 0, "done"),
        ("m0b", "m", 0, ("a", "b"), 0, "done"),
        ("m0c", "m", 0, ("a", "c"), 0, "done"),
        ("m1b", "m", 1, ("a", "b"), 0, "done"),
        ("m1c", "m", 1, ("a", "c"), 0, "done"),
        ("m2", "m", 2, ("a",), 0, "failed"),
    ],
    columns=["cell", "method", "draw", "unseen", "seed", "status"],
)


def metric(cell, role, domain, value, step=-1):
    return {"cell": cell, "step": step, "role": role, "domain": domain, "metric": "accuracy", "value": value}


METRICS = pd.DataFrame(
    [
        metric("m0", "validation", "b", 0.9),
        metric("m0", "validation", "c", 0.9),
        metric("m0", "validation", "b", 1.0, step=10),  # during training: not what is selected on
        metric("m1", "validation", "b", 0.8),
        metric("m1", "validation", "c", 0.8),
        metric("m0", "unseen", "a", 0.3),
        metric("m1", "unseen", "a", 0.2),
        metric("m0b", "unseen", "a", 0.99),  # the unseen domain itself must not count
        metric("m0b", "unseen", "b", 0.4),
        metric("m0c", "unseen", "c", 0.4),
        metric("m1b", "unseen", "a", 0.0),
        metric("m1b", "unseen", "b", 0.6),
        metric("m1c", "unseen", "c", 0.7),
    ]
)


@pytest.mark.parametrize(
    ("rule", "cell", "score"),
    [("id-validation", "m0", 0.9), ("leave-one-domain-out", "m1", 0.65), ("oracle", "m0", 0.3)],
)
def test_each_rule_reads_its_own_numbers(rule, cell, score):
    chosen = select(CELLS, METRICS, rule, [("a",)])
    assert chosen.cell.tolist() == [cell] and chosen.score.iloc[0] == pytest.approx(score)


@pytest.mark.parametrize("rule", ["id-validation", "leave-one-domain-out"])
def test_rules_that_do_not_peek_ignore_the_unseen_labels(rule):
    peeked = METRICS.copy()
    peeked.loc[(peeked.role == "unseen") & (peeked.domain == "a"), "value"] = 1 - peeked.value
    assert selection_scores(CELLS, METRICS, rule).equals(selection_scores(CELLS, peeked, rule))
    assert not selection_scores(CELLS, METRICS, "oracle").equals(selection_scores(CELLS, peeked, "oracle"))
