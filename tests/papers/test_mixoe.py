import numpy as np
import pytest
import torch
from PIL import Image

from unseen.errors import InputError
from unseen.papers import mixoe_runs
from unseen.papers.mixoe import (
    ACCURACY,
    COARSE,
    CUTMIX,
    FINE,
    LONGER,
    OE,
    TUNED,
    WITHIN,
    MixOEPaper,
)
from unseen.papers.mixoe_runs import DIGITS, TUNINGS, Recipe, digit_world, folder_recipe, measured, patches
from unseen.training import Learner

SHORT = Recipe(DIGITS.base.replace(steps=3), DIGITS.tuning.replace(steps=2))


def test_the_world_keeps_classes_photographs_and_images_apart():
    world = digit_world(0, outliers=60)
    assert len(world.shift.classes) == 6 and len(world.shift) == 240 * 20 and len(world.shift.outliers) == 60
    assert set(world.y.tolist()) == set(range(6))
    assert len(world.fine) + 2 * len(world.x) in range(1796, 1799)
    again = digit_world(0, outliers=60)
    assert torch.equal(world.shift.inputs, again.shift.inputs) and torch.equal(world.coarse, again.coarse)
    assert digit_world(1, outliers=60).shift.classes != world.shift.classes
    for name in ("china.jpg", "flower.jpg"):
        made = patches(name, 30, torch.Generator().manual_seed(0)).float() / 255
        assert made.shape == (30, 1, 8, 8)
        assert abs(float(made.mean()) - 0.305) < 0.08  # values beyond black and white are cut


def test_all_conditions_begin_from_one_classifier_and_are_measured(monkeypatch):
    started = []
    real = mixoe_runs.fit

    def fit(learner, split, **options):
        started.append(options.get("start"))
        return real(learner, split, **options)

    monkeypatch.setattr(mixoe_runs, "fit", fit)
    monkeypatch.setattr(mixoe_runs, "digit_world", lambda seed: digit_world(seed, copies=1, outliers=90))
    monkeypatch.setattr(mixoe_runs, "DIGITS", SHORT)
    reproduction = MixOEPaper()
    rows = reproduction.measure("all", 0, "laptop")
    assert {row.condition for row in rows} == {c.name for c in reproduction.conditions}
    assert {row.metric for row in rows} == set(reproduction.metrics)
    assert all(0 <= row.value <= 1 for row in rows) and len(rows) == 8 * 5 - 5
    assert started[0] is None and len(started) == 7
    first = started[1]
    assert all(torch.equal(first[k], other[k]) for other in started[2:] for k in first)
    assert set(TUNINGS) == set(TUNED)


def test_claims_compare_what_they_say():
    base = {(name, ACCURACY): 0.95 for name in TUNED}
    base |= {(name, FINE): 0.8 for name in TUNED} | {(name, COARSE): 0.8 for name in TUNED}
    base |= {(OE, COARSE): 0.95, (CUTMIX, FINE): 0.82, (CUTMIX, COARSE): 0.9, (WITHIN, FINE): 0.825}
    values = {c.name: c.value(base) for c in MixOEPaper.claims if c.value is not None}
    assert values["no collapse"] == 0.95
    assert values["exposure helps against its like"] == pytest.approx(0.15)
    assert values["mixtures help against novel classes"] == pytest.approx(0.02)
    assert values["more than outliers do"] == pytest.approx(0.02)
    assert values["not behind mixing alone"] == pytest.approx(-0.005)
    assert values["outliers make the difference far away"] == pytest.approx(0.1)
    import pandas as pd

    rows = [
        (seed, name, FINE, value)
        for seed, gain in enumerate((0.1, 0.1, -0.1, 0.1))
        for name, value in ((LONGER, 0.5), (CUTMIX, 0.5 + gain))
    ]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    (share,) = [c.pooled(table) for c in MixOEPaper.claims if c.pooled is not None]
    assert share == 0.75


def images(folder, count, seed):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")


def test_the_whole_scale_reads_folders(tmp_path, monkeypatch):
    for number in range(5):
        images(tmp_path / "fine" / "all" / f"bird{number}", 10, number)
    images(tmp_path / "outliers", 12, 9)
    images(tmp_path / "coarse", 8, 10)
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "fine"))
    monkeypatch.delenv("UNSEEN_OUTLIERS", raising=False)
    with pytest.raises(InputError, match="UNSEEN_OUTLIERS"):
        mixoe_runs.folder_world(0)
    monkeypatch.setenv("UNSEEN_OUTLIERS", str(tmp_path / "outliers"))
    monkeypatch.setenv("UNSEEN_COARSE", str(tmp_path / "coarse"))
    monkeypatch.setenv("UNSEEN_NETWORK", "cnn(width=4)")
    world = mixoe_runs.folder_world(0)
    assert len(world.shift.classes) == 3 and len(world.fine) == 20 and len(world.y) == 6
    recipe = folder_recipe(len(world.shift))
    assert isinstance(recipe.base, Learner) and recipe.base.steps == 9 * recipe.tuning.steps
    found = measured(world, Recipe(recipe.base.replace(steps=2), recipe.tuning.replace(steps=1)), 0)
    assert set(found) == {c.name for c in MixOEPaper.conditions}
