import math

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers import drm, rotated_digits
from unseen.papers.drm import ANGLES, SEEN, SOURCES, TARGETS, UNSEEN, DRMReproduction
from unseen.papers.rotated_digits import Protocol
from unseen.registry import papers
from unseen.shifts.arrays import from_arrays

SMALL = Protocol(train=40, test=30, steps=4, batch=8)


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.arange(300) % 10


@pytest.fixture(scope="module")
def rows(digits):
    return drm.rotated(0, *digits, SMALL)


def table_of(*seeds):
    rows = [(seed, *row) for seed, found in enumerate(seeds) for row in found]
    return pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])


def test_every_condition_is_measured_and_every_claim_has_a_number(rows, digits):
    table = table_of(rows, rows)
    assert set(table.condition) == {c.name for c in DRMReproduction.conditions}
    for condition, found in table.groupby("condition"):
        adapted = condition.startswith("adapted")
        assert set(found.metric) == {UNSEEN, *TARGETS} | (set() if adapted else {SOURCES, *SEEN})
    claims = DRMReproduction.claims
    finite = [
        math.isfinite(claim.judge(table).mean) for claim in claims if claim.name != "near the best head"
    ]
    assert all(finite) and papers.build("drm").plot(table).axes
    torch.manual_seed(5)
    assert drm.rotated(0, *digits, SMALL) == rows


def measured(**changes):
    names = [condition.name for condition in DRMReproduction.conditions]
    return {(n, metric): changes.get(n, 0.5) for n in names for metric in (UNSEEN, SOURCES, *TARGETS, *SEEN)}


def test_the_arithmetic_of_the_claims():
    claims = {claim.name: claim for claim in DRMReproduction.claims}
    m = measured(erm=0.4, batch=0.55, uniform=0.45, oracle=0.6, example=0.38, shuffled=0.41)
    for name, expected in {
        "better than ERM": 0.15, "better than the mean of heads": 0.1, "near the best head": 0.75,
        "an example is too little": -0.02, "domains needed": 0.01, "better than an ensemble": 0.05,
    }.items():  # fmt: skip
        assert claims[name].value(m) == pytest.approx(expected), name
    m["erm", SOURCES] = 0.8
    assert claims["angles are a shift"].value(m) == pytest.approx(0.4)
    one, other = measured(), measured()
    one["batch", SEEN[2]], other["batch", SEEN[2]], other["batch", SEEN[0]] = 0.4, 0.54, 0.45
    table = table_of(*([(*key, value) for key, value in each.items()] for each in (one, other)))
    assert claims["keeps the sources"].pooled(table) == pytest.approx(-0.03)  # of means over seeds
    adapted = measured(**{"adapted, rising": 0.6, "adapted, falling": 0.48, "batch of 32": 0.5})
    assert claims["adaptation"].value(adapted) == pytest.approx(-0.02)


def test_sources_have_images_of_their_own_and_every_angle_the_same_test(digits):
    images, labels = torch.arange(300, dtype=torch.uint8).remainder(251), digits[1]
    images = images[:, None, None].expand(300, 28, 28).contiguous()  # an image's grey tells which one it is
    data = rotated_digits.rotated_digits(images, labels, 0, (0, 90, 180), (30,), SMALL)
    middle = (data.x.view(-1, 14, 14)[:, 7, 7] * 255).round().long()
    held = (data.tests[30][0].view(-1, 14, 14)[:, 7, 7] * 255).round().long()
    known = middle[middle > 48]  # 250 greys for 300 images: those above appear once
    assert len(known.unique()) == len(known) and not set(known.tolist()) & set(held.tolist())
    assert data.domain.bincount().tolist() == [40, 40, 40] and list(data.tests) == [0, 90, 180, 30]
    assert all(torch.equal(y, data.tests[0][1]) for _, y in data.tests.values())
    assert data.x.shape == (120, 196) and data.x.min() >= 0 and data.x.max() <= 1 + 1e-6


def test_turning_by_right_angles_is_exact(digits):
    first = rotated_digits._turned(digits[0][:3], 0).view(3, 14, 14)
    turned = rotated_digits._turned(digits[0][:3], 180).view(3, 14, 14)
    torch.testing.assert_close(turned, first.flip(1, 2), rtol=0, atol=1e-3)


def test_the_control_shuffles_and_the_adapter_goes_through_the_angles_in_order(digits, monkeypatch):
    domain = torch.arange(3).repeat_interleave(40)
    other = rotated_digits.shuffled(domain, 0)
    assert torch.equal(other.sort().values, domain) and not torch.equal(other, domain)
    data = rotated_digits.rotated_digits(*digits, 0, (0, 180), (20, 160), SMALL)
    heads = rotated_digits.trained(drm.Spec("drm"), data, 0, SMALL)
    found = rotated_digits.adapted(heads, data.tests, (160, 20), 10, threshold=0.0)
    assert list(found) == [160, 20]
    mixed = rotated_digits.mixed_stream(heads, data.tests, 8, 0)
    assert set(mixed) == {"batch", "group"} and set(mixed["group"]) == {0, 180, 20, 160}


def test_full_scale_leaves_each_domain_out_and_steers_by_what_it_brings():
    generator = np.random.default_rng(0)
    labels, domain = np.tile([0, 1], 60), np.repeat(["a", "b", "c"], 40)
    x = (generator.normal(size=(120, 4)) + labels[:, None]).astype("float32")
    settings = {
        "network": "mlp(width=8)",
        "steps": 4,
        "batch_size": 8,
        "evaluations": 1,
        "learning_rate": 0.01,
    }
    shift = from_arrays(x, labels, domain)
    found = drm.left_out("drm", 0, shift, **settings)
    assert set(found) < {c.name for c in DRMReproduction.conditions} and "batch of 32" in found
    assert max(found["shared"], found["batch"]) <= found["oracle"] + 1e-6 <= 1 + 2e-6
    assert set(drm.left_out("erm", 0, shift, **settings)) == {"erm"}
    assert papers.build("drm").units("full") == ["erm", "drm"]


def test_angles_are_those_of_the_protocol():
    assert len(TARGETS) == len(SEEN) == 9 and TARGETS[0] == "0+90+180: 30"
    assert not any(set(sources) & set(targets) for sources, targets in ANGLES.items())
