import numpy as np
import pandas as pd
import pytest
import torch

from unseen.arena import Budget, Candidate
from unseen.papers import backbone_arena, small_backbones
from unseen.papers.backbone_arena import METRICS, PIXELS, POOL, BackboneArenaReproduction, judge, results
from unseen.papers.base import by_seed
from unseen.papers.small_backbones import Recipe, encoder, info_nce, pretrain, pretraining_data, view

pytest.importorskip("mlxtend")


def measured(seed=0, agreement=1.0, **raised):
    """Values of which a share is one quality a backbone, equal in all settings; `raised` lifts objectives or names."""
    generator = np.random.default_rng(seed)
    quality = {
        name: generator.normal() + raised.get(recipe.objective, raised.get(name, 0.0))
        for name, recipe in POOL.items()
    }
    values = {
        (name, metric): agreement * quality[name] + (1 - agreement) * 3 * generator.normal()
        for name in POOL
        for metric in METRICS
    }
    return values | {(PIXELS, metric): 0.0 for metric in METRICS}


def claim(name):
    return next(c for c in BackboneArenaReproduction.claims if c.name == name)


def test_the_table_of_the_claims_is_the_pool_without_pixels():
    frame = results(measured())
    assert len(frame) == len(POOL) * len(METRICS) and set(frame.backbone) == set(POOL)
    assert set(frame.task) == {"probe", "fine-tune", "few-shot", "ood", "retrieval", "place"}


def test_claims_tell_agreement_from_chance():
    agree, chance = claim("tasks agree").value, claim("chance agrees less").value
    assert agree(measured(agreement=0.9)) == 1.0
    assert agree(measured(agreement=0.0)) < 0.3
    assert chance(measured(agreement=1.0)) < 0.2
    assert claim("familiar data tell").value(measured(agreement=1.0)) == pytest.approx(1.0)


def test_claims_on_objectives():
    low = measured(none=-9.0)
    assert claim("random weights come last").value(low) < 0
    assert claim("random weights come last").value(measured(none=9.0)) > 0
    labels = measured(**{"vit supervised, large": 9.0})
    assert claim("taught by labels or captions").value(labels) > 0
    assert claim("taught by labels or captions").value(measured(masked=9.0)) < 0
    assert claim("self-supervision keeps up: CNN").value(measured(rotation=9.0)) > 1
    assert claim("self-supervision keeps up: ViT").value(measured(supervised=9.0)) < -1


def test_the_gap_must_be_small_in_both_directions():
    both = claim("self-supervision keeps up: CNN")
    assert (both.at_least, both.at_most) == (-0.5, 0.5)


def test_better_than_pixels_counts_settings():
    values = measured()
    values[PIXELS, "place: TinyWorld"] = 1e9
    expected = np.mean([max(values[n, m] for n in POOL) > values[PIXELS, m] for m in METRICS])
    assert claim("better than pixels").value(values) == pytest.approx(expected) and expected < 1


def test_pretraining_data_leave_the_looks_and_digits_of_the_tests_alone():
    data = pretraining_data(600, 0)
    assert data.images.shape == (600, 3, 16, 16) and data.images.min() >= 0 and data.images.max() <= 1
    assert (data.labels[:300] < 64).all() and (data.labels[300:] >= 64).all()
    looks = data.words[:300, 16:24].sum(0)
    assert looks[[0, 3, 4]].tolist() == [100, 100, 100] and looks.sum() == 300  # photo, noise and tint
    digits = small_backbones.digits_at_hand()[0][small_backbones.PRETRAINED_DIGITS :].flatten(1)
    assert torch.cdist(data.images[300:].flatten(1), digits).min() > 0
    assert torch.equal(pretraining_data(600, 0).images, data.images)


@pytest.mark.parametrize("objective", ["supervised", "contrastive", "masked", "rotation", "caption"])
def test_every_objective_learns(objective):
    losses = []
    head = small_backbones._OBJECTIVES[objective]

    class Watched(head):
        def forward(self, *given):
            losses.append(super().forward(*given))
            return losses[-1]

    recipe = Recipe("cnn", objective, 400)
    small_backbones._OBJECTIVES[objective] = Watched
    try:
        network = pretrain(recipe, 0, steps=20, batch=64)
    finally:
        small_backbones._OBJECTIVES[objective] = head
    assert torch.stack(losses[-5:]).mean() < torch.stack(losses[:5]).mean()
    images = torch.rand(2, 3, 16, 16)
    assert network(images).shape == (2, 64)
    again = pretrain(recipe, 0, steps=20, batch=64)
    torch.testing.assert_close(again(images), network(images))


def test_backbones_of_a_seed_start_alike_and_stay_small():
    for architecture in ("cnn", "vit"):
        first, second = encoder(architecture, 3), encoder(architecture, 3)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert 30_000 < sum(p.numel() for p in first.parameters()) < 160_000


def test_info_nce_is_the_formula_written_out():
    z = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = 0.0
    for i in range(6):
        j = (i + 3) % 6
        others = [torch.exp(z[i] @ z[k] / 0.2) for k in range(6) if k != i]
        expected -= torch.log(torch.exp(z[i] @ z[j] / 0.2) / sum(others)) / 6
    torch.testing.assert_close(info_nce(3 * z), expected)


def test_views_move_an_image_by_two_pixels_at_most():
    image = torch.zeros(40, 3, 16, 16)
    image[:, :, 8, 8] = 1
    seen = view(image, torch.Generator().manual_seed(0)).mean(1).flatten(1).argmax(1)
    rows, columns = seen // 16, seen % 16
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}


def test_the_place_is_where_the_object_is():
    images, *_, place = backbone_arena._world(60, ("photo",), seed=3)
    bright = (images.amax(1) > 0.6).float()  # the ground is 0.4 at most
    axis = torch.arange(16.0)
    x = (bright.sum(1) * axis).sum(1) / bright.sum((1, 2))
    assert np.corrcoef(x, place[:, 0])[0, 1] > 0.7


def test_judging_gives_every_metric(monkeypatch):
    monkeypatch.setattr(backbone_arena, "small_tasks", backbone_arena.small_tasks.__wrapped__)
    entrant = Candidate(
        "random", encoder("cnn", 0), prepare=small_backbones.centred, reads="array", keep_features=False
    )
    tasks = backbone_arena.small_tasks()
    found = judge(entrant, 0, tasks, Budget(trials=1, steps=5, tuning_steps=1, batch=16))
    assert set(found) == set(METRICS)
    assert all(value <= 1 for value in found.values())


def test_the_plot_draws_all_backbones():
    rows = [(seed, *key, value) for seed in range(2) for key, value in measured(seed).items()]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert len(by_seed(table)) == 2
    figure = BackboneArenaReproduction().plot(table)
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert shown == set(POOL)


def test_full_scale_reads_the_users_images(tmp_path, monkeypatch):
    from PIL import Image

    generator = np.random.default_rng(0)
    for domain in ("a", "b"):
        for number, kind in enumerate(("dark", "bright")):
            (tmp_path / domain / kind).mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(150 * number, 150 * number + 100, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / kind / f"{i}.png")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path))
    monkeypatch.setattr(backbone_arena, "PUBLIC", ("pixels(side=2)",))
    reproduction = BackboneArenaReproduction()
    assert reproduction.units("full")[-1] == "pixels(side=2)" not in reproduction.units("laptop")
    (row,) = reproduction.measure("pixels(side=2)", 0, "full")
    assert row.metric == backbone_arena.FOLDER and row.value == 1.0
