import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers import cdsae, fair_sequences
from unseen.papers.cdsae import BASELINES, OBJECTIVES, WEIGHTS, CDSAEReproduction, chosen, dominated
from unseen.registry import objectives, papers
from unseen.shifts.fair_circle import fair_circle


@pytest.fixture
def census(tmp_path, monkeypatch) -> Path:
    """A stand-in for adult_income.parquet: the columns that are read, and rule-made people."""
    random = np.random.default_rng(0)
    count = 400
    sex, age = random.choice(["Female", "Male"], count), random.integers(17, 80, count)
    frame = pd.DataFrame({
        "age": age, "workclass": random.choice(["Private", "?", "State-gov"], count), "sex": sex,
        "hours_per_week": random.integers(10, 60, count), "fnlwgt": 1, "education_num": 9, "split": "train",
    })  # fmt: skip
    high = random.normal(size=count) + 4 * (sex == "Male") + frame.hours_per_week / 20 > 3.75
    frame["income"] = np.where(high, ">50K", "<=50K")
    frame.to_parquet(tmp_path / "adult_income.parquet")
    monkeypatch.setenv("UNSEEN_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def small(census, monkeypatch):
    sizes = {"steps": 4, "size": 40, "people": 300}
    monkeypatch.setattr(cdsae, "SIZES", {"laptop": sizes, "full": {**sizes, "people": None}})


def test_every_condition_has_its_metrics_and_every_claim_a_number(small):
    reproduction = papers.build("cdsae")
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    rows = [(seed, *row) for seed in (0, 1) for row in rows]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert set(table.condition) == {c.name for c in CDSAEReproduction.conditions} == set(OBJECTIVES)
    assert set(table.metric) == set(CDSAEReproduction.metrics)
    for name in OBJECTIVES:
        own = set(table.metric[table.condition == name])
        assert {"accuracy", "CE", "TE", "validation"} <= own
        assert ("adult parity" in own) == (name in cdsae.ON_ADULT)
    assert all(math.isfinite(claim.judge(table).mean) for claim in CDSAEReproduction.claims)
    assert len(reproduction.plot(table).axes) == 2


def test_rows_depend_on_the_seed_alone(small):
    reproduction = papers.build("cdsae")
    again = reproduction.measure("cdsae 1", 3, "full")
    torch.manual_seed(9)
    assert reproduction.measure("cdsae 1", 3, "full") == again


def measured(**changes):
    values = {
        (name, metric): 0.9
        for name in OBJECTIVES
        for metric in ("accuracy", "validation", "adult validation")
    }
    values |= {(name, metric): 0.1 for name in OBJECTIVES for metric in ("CE", "adult parity")}
    return {**values, **{tuple(key.split("|")): value for key, value in changes.items()}}


def test_the_weight_is_chosen_by_validation_alone():
    assert chosen(measured()) == "cdsae 10"
    assert (
        chosen(measured(**{"cdsae 10|validation": 0.879, "cdsae 10|CE": 0.0, "cdsae 10|accuracy": 1.0}))
        == "cdsae 1"
    )
    assert chosen(measured(**{"sequential-vae|validation": 0.99})) == "cdsae 0.1"  # none is near enough
    assert chosen(measured(**{"erm|validation": 0.99}), "parity", "erm") == "parity 0.1"


def test_domination_needs_both_and_one_strictly():
    assert not dominated(measured())  # all are equal
    assert dominated(measured(**{"unaware|CE": 0.09}))
    assert dominated(measured(**{"parity 1|accuracy": 0.91}))
    assert not dominated(measured(**{"parity 1|accuracy": 0.95, "parity 1|CE": 0.11}))
    assert not dominated(measured(**{"no-correlation|CE": 0.01}))  # an ablation is no baseline
    assert set(BASELINES) <= set(OBJECTIVES)


def test_claims():
    claims = {claim.name: claim for claim in CDSAEReproduction.claims}
    m = measured(**{
        "cdsae 10|CE": 0.04, "cdsae 10|accuracy": 0.89, "unaware|CE": 0.08, "cdsae 10|adult parity": 0.06,
        "cdsae 10|adult accuracy": 0.79, "erm|adult accuracy": 0.8, "shuffled|CE": 0.07,
    })  # fmt: skip
    values = {
        name: claims[name].value(m) for name in claims if name.startswith(("fairer", "Adult", "as accurate"))
    }
    assert values == pytest.approx({
        "fairer than ERM": 0.4, "fairer than unawareness": 0.5, "as accurate as without fairness": -0.01,
        "as accurate as without evolution": -0.01, "Adult: parity": 0.4, "Adult: accuracy": -0.01,
    })  # fmt: skip
    assert claims["the attribute is needed"].value(m) == pytest.approx(0.7)
    table = pd.DataFrame(
        [
            (seed, *key, v)
            for seed, one in enumerate([m, m, measured(**{"erm|CE": 0.01})])
            for key, v in one.items()
        ],
        columns=["seed", "condition", "metric", "value"],
    )
    assert claims["no baseline dominates"].pooled(table) == pytest.approx(2 / 3)


def test_conditions_differ_from_cdsae_in_what_they_say():
    built = {name: objectives.build(spec) for name, spec in OBJECTIVES.items()}
    method = built["cdsae 1"]
    for name, changed in (
        ("static-cvae", {"prior": "static", "correlation": 0}), ("no-correlation", {"correlation": 0}),
        ("sequential-vae", {"fairness": 0, "correlation": 0}), ("no-fairness", {"fairness": 0}),
        ("static-prior", {"prior": "static"}), ("shuffled", {}), *((f"cdsae {w:g}", {"fairness": w}) for w in WEIGHTS),
    ):  # fmt: skip
        for option in ("fairness", "correlation", "elbo", "prior", "dims", "warmup_steps", "use_attribute"):
            assert getattr(built[name], option) == changed.get(option, getattr(method, option)), (
                name,
                option,
            )


def test_bands_of_age_are_in_order_and_age_is_no_feature(census):
    shift = fair_sequences.adult(0, None)
    assert len(shift.domains) == 8 and list(shift.domains) == sorted(shift.domains)
    assert "age" not in shift.inputs and "?" not in shift.inputs.to_numpy()
    assert shift.groups == ("Female", "Male")
    for band in range(7):
        assert shift.time[shift.domain == band].max() < shift.time[shift.domain == band + 1].min()
    assert len(fair_sequences.adult(1, 50)) == 50


def test_people_and_shift_of_a_run_are_the_same(small, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fair_sequences, "fair_circle", lambda **options: seen.append(options) or fair_circle(**options)
    )
    found = fair_sequences.circle_run(OBJECTIVES["unaware"], 5, steps=1, size=40, observed=False)
    assert seen == [{"size": 40, "seed": 5, "observed": False}] and 0 <= found["TE"] <= found["CE"]
