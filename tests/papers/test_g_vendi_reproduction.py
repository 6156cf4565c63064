import math

import pandas as pd
import pytest
import torch

from unseen.papers import answer_tuning
from unseen.papers.g_vendi import DESIGNS, GROWN, GVendiReproduction, foretelling, grown_sets
from unseen.papers.turned_sets import ANGLES, TurnedImages, trained_on_turned
from unseen.registry import papers, selectors


@pytest.fixture(scope="module")
def rows():
    rows = [row for design in DESIGNS for row in foretelling(design, 0, sets=6, size=60)]
    return rows + grown_sets(0, size=70)


def test_every_condition_is_measured_and_every_claim_has_a_number(rows):
    tidy = [(seed, *row) for seed in (0, 1) for row in rows]
    table = pd.DataFrame(tidy, columns=["seed", "condition", "metric", "value"])
    assert set(table.condition) == {c.name for c in GVendiReproduction.conditions}
    assert set(table.metric) == set(GVendiReproduction.metrics) - {"target", "upright"}
    assert all(math.isfinite(claim.judge(table).mean) for claim in GVendiReproduction.claims)
    assert len(papers.build("g-vendi").plot(table).axes) == 2


def test_a_seed_decides_everything(rows):
    torch.manual_seed(3)
    again = foretelling("balanced", 0, sets=6, size=60)
    assert all(row in rows for row in again)


def test_sets_are_what_they_are_said_to_be():
    data = TurnedImages.draw(0)
    generator = torch.Generator().manual_seed(0)
    sets = [data.training_set(generator, 100, balanced=True) for _ in range(30)]
    assert all((torch.bincount(each.y) == 10).all() for each in sets)
    counts = {len(each.domain.unique()) for each in sets}
    assert min(counts) == 1 and max(counts) == len(ANGLES)
    uneven = data.training_set(generator, 100, balanced=False)
    assert len(torch.bincount(uneven.y, minlength=10).unique()) > 2
    assert data.test[0].shape == (12, 400, 64) and data.proxy[0].shape == (12, 200, 64)
    assert float(uneven.x.min()) >= 0 and float(uneven.x.max()) <= 1


def test_the_proxy_knows_rotations_it_has_seen():
    data = TurnedImages.draw(0)
    network = trained_on_turned(data, 0, steps=200)
    with torch.no_grad():
        assert data.accuracy(lambda x: network(x).argmax(-1)) > 0.5


def test_the_arithmetic_of_the_claims():
    m = {
        (c.name, metric): 0.5 for c in GVendiReproduction.conditions for metric in GVendiReproduction.metrics
    }
    m["G-Vendi", "Spearman, balanced classes"] = 0.9
    m["pixel Vendi", "Spearman, balanced classes"] = 0.7
    m["sparse gradients", "OOD accuracy"] = 0.6
    claims = {claim.name: claim for claim in GVendiReproduction.claims}
    assert claims["better than the surface"].value(m) == pytest.approx(0.2)
    assert claims["synthesis helps"].value(m) == pytest.approx(0.1)
    assert set(GROWN) <= {c.name for c in GVendiReproduction.conditions}


def test_the_full_scale_reads_what_a_user_has(monkeypatch):
    asked = []
    monkeypatch.setattr(
        answer_tuning, "tuned_accuracies", lambda spec, keep, seed: asked.append(spec) or {"target": 0.5}
    )
    reproduction = papers.build("g-vendi")
    found = [row for unit in reproduction.units("full") for row in reproduction.measure(unit, 0, "full")]
    assert [row.condition for row in found] == ["all", "chance", "sparse gradients"]
    assert asked[0] is None and all(spec.name in selectors for spec in asked[1:])
