import dataclasses
import math

import pandas as pd
import pytest
import torch

from unseen.averaging import snapshot
from unseen.papers import bang
from unseen.papers.balanced_tuning import BATCH, Judge, fine_tuned, tiny_world, tuning_metrics
from unseen.papers.bang import ACCURACY, BANG, OBJECTIVES, TEMPERATURE
from unseen.papers.patch_members import judged_members, one_cue_gain, patch_metrics
from unseen.papers.tiny_world import DOMAINS, examples, render, train_clip, zero_shot
from unseen.registry import papers

SIZES = {"pairs": 256, "epochs": 2, "train": 60, "held_out": 40}


@pytest.fixture(scope="module")
def world():
    return tiny_world(0, **SIZES)


@pytest.fixture(scope="module")
def tuned(world):
    return snapshot(fine_tuned(world, "erm", 0, 10))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(
        "unseen.papers.balanced_tuning.tuning_metrics",
        lambda seed: tuning_metrics(seed, steps=4, every=2, **SIZES),
    )
    whole = bang.patches
    monkeypatch.setattr(bang, "patches", lambda seed: whole(seed, epochs=1))


def test_every_condition_is_measured_and_every_claim_has_a_number(small):
    reproduction = papers.build("bang")
    measured = [
        row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")
    ]
    rows = [(seed, *row) for seed in (0, 1) for row in measured]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert not table.duplicated(["seed", "condition", "metric"]).any()
    assert set(table.condition) == {condition.name for condition in BANG.conditions}
    assert set(table.metric) == {name for name in BANG.metrics if not name.startswith(bang.LEFT_OUT)}
    m = {(condition, metric): value for _, condition, metric, value in rows}
    for claim in BANG.claims:
        assert math.isfinite(claim.value(m) if claim.value else claim.pooled(table))
    assert len(reproduction.plot(table).axes) == 2
    torch.manual_seed(5)
    again = {row[:2]: row.value for row in reproduction.measure("patches", 0, "laptop")}
    first = table[(table.seed == 0)].set_index(["condition", "metric"]).value
    assert all(first[key] == value for key, value in again.items())


def claims():
    return {claim.name: claim for claim in BANG.claims}


def test_claims_of_patches():
    cells = [f"k={k}, p={p:g}" for k in bang.COUNTS for p in bang.BROKEN]
    m = {("ensemble", f"gain, {at}"): 0.05 for at in cells} | {
        ("same patches", f"gain, {at}"): 0.01 for at in cells
    }
    m |= {("member", at): 0.3 + 0.01 * int(at.split(",")[0][2:]) for at in cells}
    m[("ensemble", "gain, k=16, p=0.8")] = 0.02
    table = pd.DataFrame(
        [(seed, *key, value) for seed in (0, 1) for key, value in m.items()],
        columns=["seed", "condition", "metric", "value"],
    )
    assert claims()["ensembles gain"].pooled(table) == pytest.approx(0.02)
    assert claims()["it is the patches"].value(m) == pytest.approx((5 * 0.04 + 0.01) / 6)
    assert claims()["more cues"].pooled(table) == pytest.approx(1)


def test_claims_of_fine_tuning():
    m = {
        ("pretrained", bang.ALONE): 0.8, ("ce", bang.ALONE): 0.78,
        ("ce", bang.WEIGHTS): 0.84, ("ce", "unseen, weights at 0.3"): 0.82, ("bang", bang.WEIGHTS): 0.81,
        ("ce", bang.CONFIDENCE): 0.9, ("label-smoothing", bang.CONFIDENCE): 0.6, ("bang", bang.CONFIDENCE): 0.7,
        **{(name, bang.TRAIN): 0.97 for name in bang.SOFTENED[:2]}, ("bang", bang.TRAIN): 0.9,
    }  # fmt: skip
    assert claims()["WiSE-FT beats both ends"].value(m) == pytest.approx(0.03)
    assert claims()["BANG, in weights"].value(m) == pytest.approx(-0.03)
    assert claims()["softened targets are not"].value(m) == pytest.approx(0.2)
    assert claims()["fitted"].value(m) == 0.9


def test_members_see_the_patches_that_they_are_given_and_no_others():
    """Members with the same patches and all else equal would agree; a broken patch moves only who sees it."""
    alike = judged_members([[0, 1], [0, 1]], 0, noise=0.6, epochs=1)
    assert not torch.equal(*alike.logits[0.7])
    few = judged_members([[], [3]], 0, noise=0.0, epochs=1).logits
    assert torch.equal(few[0.7][0], few[0.9][0])  # it sees the digit alone, the same in all domains
    assert not torch.equal(few[0.7][1], few[0.9][1])


def test_stacked_members_do_not_feel_each_other():
    alone = judged_members([[0, 1], [2, 3]], 3, noise=0.6, epochs=1).logits[0.8][0]
    beside = judged_members([[0, 1], [5, 6, 7]], 3, noise=0.6, epochs=1).logits[0.8][0]
    torch.testing.assert_close(alone, beside)


def test_two_members_that_agree_keep_their_answer_in_the_mean_of_logits():
    judged = judged_members([[0, 1], [2, 3]], 0, noise=0.6, epochs=2)
    counts = judged.outcomes(0, 1, 0.8).counts
    assert counts["TTF"] == 0 and sum(counts.values()) == 597
    found = patch_metrics(0, noise=0.6, epochs=1)
    assert found["ensemble", "k=8, p=0.7"] - found["member", "k=8, p=0.7"] == pytest.approx(
        found["ensemble", "gain, k=8, p=0.7"]
    )
    assert set(one_cue_gain(0, noise=0.6, epochs=1)) == set(bang.BROKEN)


def test_looks_differ_and_shapes_can_be_told(generator):
    index = torch.arange(8)
    images = [
        render(index, index, torch.full((8,), d), torch.Generator().manual_seed(0))
        for d in range(len(DOMAINS))
    ]
    for i, one in enumerate(images):
        assert one.shape == (8, 3, 16, 16) and one.min() >= 0 and one.max() <= 1
        assert all(not torch.equal(one, other) for other in images[:i])
    torch.testing.assert_close(images[DOMAINS.index("dark")], 0.35 * images[0])
    x, y = examples(16, ("photo", "dark"), generator)
    assert x.shape == (16, 3, 16, 16) and y.max() < 8


def test_contrastive_training_makes_a_zero_shot_classifier(generator):
    network = zero_shot(*train_clip(0, pairs=640, epochs=8, width=16, size=32, batch=64))
    x, y = examples(200, ("photo",), generator)
    assert float((network(x).argmax(1) == y).float().mean()) > 0.4  # chance: 0.125


def test_fine_tuning_moves_the_head_too_and_the_average_has_both(world, tuned):
    judge = Judge(world)
    assert not torch.equal(tuned["head.weight"], judge.start["head.weight"])
    found = judge.averaged(tuned)
    half = {name: (value + tuned[name]) / 2 for name, value in judge.start.items()}
    assert found["unseen, weights at 0.5"] == pytest.approx(judge.accuracy(half, world.unseen))


def test_alpha_is_chosen_without_the_unseen_looks(world, tuned):
    other = dataclasses.replace(world, unseen=(world.unseen[0], (world.unseen[1] + 1) % 8))
    alphas = [Judge(each).averaged(tuned)["alpha by validation"] for each in (world, other)]
    assert alphas[0] == alphas[1]


def test_a_matched_head_is_as_sure_as_the_pretrained_network_and_decides_the_same(world, tuned):
    from unseen.papers.balanced_tuning import _matched

    judge = Judge(world)
    matched = _matched(judge, tuned)
    sure = [
        float(judge.logits(s, world.validation).softmax(1).max(1).values.mean())
        for s in (matched, judge.start)
    ]
    assert sure[0] == pytest.approx(sure[1], abs=1e-4)
    same = [judge.logits(s, world.unseen).argmax(1) for s in (matched, tuned)]
    assert float((same[0] == same[1]).float().mean()) > 0.99


def test_every_way_to_fine_tune_sees_the_same_examples(world):
    assert set(OBJECTIVES) == {"ce", "label-smoothing", "mixup", "bang"} and BATCH == 32
    one, other = (fine_tuned(world, "bang", seed, 3).head.weight for seed in (1, 1))
    assert torch.equal(one, other)
    assert {TEMPERATURE, ACCURACY} <= {condition.name for condition in BANG.conditions}


def test_full_scale_averages_with_a_linear_probe(monkeypatch):
    seen = []

    def accuracy(objective, seed, **settings):
        seen.append((objective.name, settings))
        return {"a": 0.25, "b": 0.75}

    monkeypatch.setattr("unseen.papers.left_out_domains.left_out_accuracy", accuracy)
    reproduction = papers.build("bang")
    assert reproduction.units("full")[2:] == [f"left out: {name}" for name in OBJECTIVES]
    rows = reproduction.measure("left out: ce", 0, "full")
    assert [row.value for row in rows] == [0.5, 0.5] and seen[0][0] == "erm"
    assert seen[0][1]["averaging"] is None and str(seen[1][1]["averaging"]) == "wise-ft(after=0.1)"
    for _, settings in seen:
        assert settings["update"].options["head_steps"] == 0.1 * settings["steps"]
