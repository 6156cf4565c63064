import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers.discovered_digits import Protocol, affine_views, discovered_digits, pretrained
from unseen.papers.protogcd import (
    ALL,
    GAP,
    NEW,
    NUMBER,
    OLD,
    OUTLIERS,
    ProtoGCDReproduction,
    feature_rows,
    outlier_rows,
    pool_rows,
)
from unseen.registry import papers

TINY = Protocol(pretraining=1, epochs=1, examples=400)


def test_only_old_classes_have_labels_and_only_half_of_them():
    world = discovered_digits(0, Protocol())
    assert world.y[world.labelled].unique().tolist() == [0, 1, 2, 3, 4]
    assert world.hidden.unique().tolist() == list(range(10)) and not len(world.outliers)
    assert float(world.labelled[world.y < 5].float().mean()) == pytest.approx(0.5, abs=0.05)


def test_outliers_are_digits_that_are_nowhere_else():
    world = discovered_digits(0, Protocol(), n_old=4, n_new=4)
    assert world.y.unique().tolist() == list(range(8))
    assert len(world.x) + len(world.outliers) == 1797 and 300 < len(world.outliers) < 400
    assert not torch.equal(discovered_digits(1, Protocol()).y, discovered_digits(2, Protocol()).y)


def test_views_are_near_their_image_and_differ(generator):
    x = discovered_digits(0, TINY).x[:50]
    views = affine_views(x, generator)
    assert views.shape == (50, 2, 1, 8, 8)
    near = (views - x[:, None]).square().mean()
    assert 0 < near < (views - x.flip(0)[:, None]).square().mean() / 1.5
    assert not torch.equal(views[:, 0], views[:, 1])


def test_pretraining_is_decided_by_the_seed_and_sees_no_label():
    world = discovered_digits(0, TINY)
    one, two = pretrained(world.x, TINY, 0)(world.x), pretrained(world.x, TINY, 0)(world.x)
    assert torch.equal(one, two) and one.shape == (400, 64)


def test_units_measure_what_is_declared():
    rows = pool_rows(discovered_digits(0, TINY), TINY, 0)
    rows += outlier_rows(discovered_digits(0, TINY, n_old=4, n_new=4), TINY, 0)
    reproduction = papers.build("protogcd")
    assert {row.condition for row in rows} == {condition.name for condition in reproduction.conditions}
    assert {row.metric for row in rows} == {ALL, OLD, NEW, GAP, NUMBER, OUTLIERS}
    assert all(0 <= row.value <= 1 for row in rows if row.metric != NUMBER)


def test_claims_compute_what_they_say():
    values = {"protogcd": 0.9, "soft": 0.85, "hard": 0.8, "no entropy": 0.4, "no separation": 0.89}
    values |= {"k-means": 0.7, "semi-supervised k-means": 0.75}
    rows = []
    for seed in (0, 1):
        for name, value in values.items():
            rows += [(seed, name, ALL, value), (seed, name, NEW, value), (seed, name, OLD, 0.95)]
            rows += [(seed, name, GAP, 0.95 - value)]
        rows += [(seed, "protogcd", OUTLIERS, 0.8), (seed, "k-means", OUTLIERS, 0.7)]
        rows += [(seed, "protogcd", NUMBER, 9.0 + 3 * seed)]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    means = {claim.name: claim.judge(table).mean for claim in ProtoGCDReproduction.claims}
    assert means["hardening beats soft"] == pytest.approx(0.05)
    assert means["hardening beats hard"] == pytest.approx(0.1)
    assert means["less bias than hard"] == pytest.approx(0.1)
    assert means["evening is needed"] == pytest.approx(0.5)
    assert means["finds the number"] == pytest.approx(0.5)
    assert means["knows them better than distances do"] == pytest.approx(0.1)
    assert papers.build("protogcd").plot(table) is not None


def test_features_of_a_file_go_the_whole_way(tmp_path):
    random = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = random.normal(size=(90, 6)) + 4 * np.eye(3, 6)[y]
    np.savez(tmp_path / "gcd_features.npz", x=x, y=y, labelled=(y < 2) & (random.random(90) < 0.5))
    rows = feature_rows(tmp_path / "gcd_features.npz", 0, epochs=2, hidden=8, projection=4)
    assert [row.condition for row in rows] == ["soft", "hard", "protogcd"]
    assert all(0 < row.value <= 1 for row in rows)
