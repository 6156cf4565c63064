"""LEVI's worlds hold the cues that they say; the measure runs in miniature; claims compute what they state."""

import pandas as pd
import pytest
import torch

from unseen.papers.base import by_seed
from unseen.papers.levi import FEW, MAIN, TEXT, Levi, left_out
from unseen.papers.levi_runs import agreeing, digits_world, interpolated, pretrained, run, text_world
from unseen.shifts.arrays import from_arrays


@pytest.fixture(scope="module")
def world():
    return digits_world(0, pretrain=800, epochs=2)


def cues(x):
    image = x.view(-1, 10, 12)
    return image[:, :, 0], image[:, :, 11]


def test_cues_of_digits(world):
    a, b = cues(world.pretraining[0])
    assert ((a.argmax(1) == world.pretraining[1]).float().mean() - 0.955).abs() < 0.03
    assert (b.argmax(1) == world.pretraining[1]).float().mean() < 0.2
    a, b = cues(world.tuning[0])
    assert not a.any() and (b.argmax(1) == world.tuning[1]).float().mean() > 0.8
    for test, (x, y) in world.tests.items():
        a, b = cues(x)
        assert bool(a.any()) == (test in ("OOD-1", "OOD-2")) and (b.sum(1) == 1).all()
        if test != "ID":
            assert (b.argmax(1) == y).float().mean() < 0.2
    a, b = cues(world.tests["OOD-2"][0])
    assert torch.equal(a.argmax(1), b.argmax(1)) and not (a.argmax(1) == world.tests["OOD-2"][1]).any()


def test_no_digit_is_in_two_roles(world):
    inner = [x.view(-1, 10, 12)[:, 1:9, 2:10].flatten(1) for x, _ in (world.tuning, world.validation)]
    inner += [world.tests[t][0].view(-1, 10, 12)[:, 1:9, 2:10].flatten(1) for t in ("ID", "OOD-1")]
    assert len(torch.cat(inner).unique(dim=0)) == sum(map(len, inner))


def test_cues_of_sentences():
    world = text_world(0, pretrain=400, judge=200)
    x, y = world.pretraining
    assert (x[:, 0] == y).float().mean() > 0.9 and ((x[:, 1] - 2) == y).float().mean() < 0.65
    x, y = world.tuning
    assert (x[:, 0] >= 4).all() and ((x[:, 1] - 2) == y).float().mean() > 0.85
    x, y = world.tests["OOD-2"]
    assert torch.equal(x[:, 0], 1 - y) and torch.equal(x[:, 1] - 2, 1 - y)


def test_agreement_is_beyond_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (20000,), generator=generator)
    share = (agreeing(labels, 0.5, 10, generator) == labels).float().mean()
    assert share.item() == pytest.approx(0.55, abs=0.02)


def test_interpolation_is_of_weights(world):
    one, other = pretrained(world, 0), pretrained(world, 1)
    middle = interpolated(one, other, 0.5).state_dict()
    for name, value in middle.items():
        assert torch.allclose(value, (one.state_dict()[name] + other.state_dict()[name]) / 2)


def test_every_condition_is_measured(world):
    names = tuple(condition.name for condition in Levi.conditions)
    found = run(world, 0, names, steps=40)
    assert {condition for condition, _ in found} == set(names)
    assert found["levi", "ID"] > 0.3
    assert 0 < found["levi", "backbone's part"] < 1 == found["probe of all taps", "backbone's part"]
    assert found["linear probe", "trained weights"] == 650
    blocks, small = 2 * (120 * 64 + 4 * 2 * 64 * 64), 2 * (120 * 32 + 32 * 32)
    assert found["fine-tuning", "operations"] == blocks + 2 * 64 * 10
    mixing = 2 * 10  # of a tap's offsets
    assert found["lp + small", "operations"] == blocks + 2 * 64 * 10 + mixing + small + 2 * 32 * 10
    assert found["levi", "operations"] == blocks + small + 4 * (2 * (64 + 32) * 10 + mixing)
    assert found["ft + small", "weights"] == found["fine-tuning", "weights"] + found["small", "weights"]
    assert found["levi", "trained weights"] < found["levi", "weights"] / 3
    assert found == run(world, 0, names, steps=40)


def test_text_is_measured():
    found = run(text_world(0, pretrain=200, tune=60, judge=60, epochs=1), 0, FEW, steps=20)
    assert {c for c, _ in found} == set(FEW)


def test_claims_compute_what_they_state():
    rows = []
    for number, condition in enumerate(Levi.conditions):
        for metric in Levi.metrics:
            rows.append((0, condition.name, metric, 0.01 * number))
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    table.loc[(table.condition == "fine-tuning") & (table.metric == "OOD-0"), "value"] = 0.5
    measured = by_seed(table)[0]
    values = {claim.name: claim.value(measured) for claim in Levi.claims}
    assert values["pretraining's cue hurts"] == pytest.approx(0.48)
    assert values["over fine-tuning"] == pytest.approx(0.10)
    assert values["over the plain ensemble"] == pytest.approx(0.05)
    assert values["boundary: tuning can unlearn"] == pytest.approx(-0.09)
    assert values["what an answer costs"] == values["what training changes"] == pytest.approx(0.12 / 0.02)
    assert set(Levi().units("laptop")) < set(Levi().units("full"))
    assert Levi().units("laptop")[0] == MAIN and TEXT in Levi().units("laptop")


def test_full_scale_in_miniature(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (36, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    labels, domains = torch.arange(36).numpy() % 2, torch.arange(36).numpy() % 3
    rows = left_out(0, from_arrays(images, labels, domains), steps=2, batch_size=4, evaluations=1)
    assert {row.condition for row in rows} == {"fine-tuning", "small", "levi"}
