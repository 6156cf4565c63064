import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from unseen.arena import BackboneArena, Budget, Candidate, Detection, TunedDetection, candidate, open_boxes
from unseen.arena.average_precision import average_precision
from unseen.arena.boxes import BoxSplit
from unseen.arena.detection import divided, standardisation
from unseen.arena.pool import at_most, tasks_of
from unseen.errors import InputError, MissingExtra
from unseen.networks.centre_head import Found, centre_loss, centre_targets
from unseen.networks.feature_maps import StoredMaps, feature_maps

pytest.importorskip("pycocotools")
BUDGET = Budget(trials=1, detector_steps=100, tuning_steps=10)
SHORT = Budget(trials=1, detector_steps=10, tuning_steps=5)


@pytest.fixture(scope="module")
def folder(write_boxes, tmp_path_factory):
    return write_boxes(tmp_path_factory.mktemp("boxes") / "letters", {"train": 100, "test": 40})


@pytest.fixture(scope="module")
def data(folder):
    return open_boxes(folder)


def small(seed=0, **options):
    """A small convolutional network with random weights, on raw images."""

    class Scaled(nn.Module):
        def forward(self, x):
            return x.float() / 255

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [Scaled(), nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
        encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Candidate(f"small {seed}", encoder, keep_features=False, **options)


def by_chance(data, seed=0):
    """AP50 of 100 boxes an image that are drawn from all training boxes with their classes, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = torch.cat(list(data.train.boxes)), torch.cat(list(data.train.labels))
    found = []
    for _ in range(len(data.tests[0])):
        rows = torch.randint(len(boxes), (100,), generator=generator)
        found.append(Found(boxes[rows], labels[rows], torch.rand(100, generator=generator)))
    return average_precision(found, data.tests[0].boxes, data.tests[0].labels)["AP50"]


def scores(task, entrant, budget=BUDGET, seed=0):
    return {score.metric: score.value for score in task.measure(entrant, budget, seed)}


def test_pretrained_maps_find_letters_on_photographs_and_chance_or_pixels_do_not(data):
    pytest.importorskip("efficientnet_lite_pytorch")
    entrant = candidate("efficientnet-lite0(size=96)")
    entrant.keep_features = False
    found, pixels = scores(Detection(data), entrant), scores(Detection(data), candidate("pixels"))
    chance = by_chance(data)
    assert found["AP50"] > 0.6 and found["AP50"] > found["AP"] > 0.15
    assert chance < 0.1 and pixels["AP50"] < found["AP50"] - 0.2


def test_a_score_a_test_split_and_metric_that_the_seed_decides(folder, data):
    task = Detection(data)
    first = task.measure(small(), SHORT, 0)
    assert [(s.setting, s.metric) for s in first] == [("letters: test", "AP"), ("letters: test", "AP50")]
    assert first[0].chosen.startswith("rate ")
    assert task.measure(small(), SHORT, 0) == first
    assert task.measure(small(), SHORT, 1) != first


def test_test_boxes_do_not_reach_training_or_choice(data):
    class Watched(Detection):
        def _fit(self, *arguments):
            self.fitted = super()._fit(*arguments)
            return self.fitted

    emptied = [box[:0] for box in data.tests[0].boxes]
    other = type(data.tests[0])(
        "test",
        data.tests[0].images,
        emptied,
        *[[x[:0] for x in y] for y in (data.tests[0].labels, data.tests[0].crowd)],
    )
    task, again = Watched(data), Watched(data)
    task.measure(small(), SHORT, 0)
    again.data = type(data)(data.name, data.classes, data.train, (other,))
    with pytest.raises(InputError, match="needs an image with a box"):
        again.measure(small(), SHORT, 0)
    for a, b in zip(task.fitted[0].head.parameters(), again.fitted[0].head.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_are_not_trained_on(data):
    def with_group(place):
        row = torch.tensor([place])
        parts = ([torch.cat([each, new]) for each in old] for old, new in (
            (data.train.boxes, row), (data.train.labels, torch.tensor([0])), (data.train.crowd, torch.tensor([True]))
        ))  # fmt: skip
        return replace(data, train=BoxSplit("train", data.train.images, *parts))

    first, second = (with_group(place) for place in ([0.1, 0.1, 0.4, 0.4], [0.6, 0.5, 0.9, 0.9]))
    assert Detection(first).measure(small(), SHORT, 0) == Detection(second).measure(small(), SHORT, 0)


def test_the_scale_of_maps_changes_nothing(data):
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.encoder, self.scale = small().encoder, scale

        def feature_maps(self, images):
            return [self.scale * each for each in feature_maps(self.encoder, images)]

    one, large = (
        scores(Detection(data), Candidate("x", Scaled(k), keep_features=False), SHORT) for k in (1, 64)
    )
    assert large == pytest.approx(one, abs=1e-3) and one["AP50"] > 0


def test_the_best_rate_on_validation_counts(data):
    class Given:
        def __init__(self, rate):
            self.rate = rate

        def precision(self, split, rows):
            assert split is data.train and rows.tolist() == [7]
            return {"AP": -((self.rate - 0.1) ** 2), "AP50": self.rate}

    best, chosen = Detection(data)._best(Given, torch.tensor([0.01, 0.1, 1.0]), torch.tensor([7]))
    assert best.rate == pytest.approx(0.1) and chosen == "rate 0.1"


def test_rows_are_divided_and_background_is_trained_on(data):
    split = data.train.select(torch.arange(20))
    split.boxes[3], split.labels[3], split.crowd[3] = (
        x[3][:0] for x in (split.boxes, split.labels, split.crowd)
    )
    for seed in range(5):
        train, validation = divided(split, torch.Generator().manual_seed(seed))
        assert sorted([*train.tolist(), *validation.tolist()]) == list(range(20))
        assert 3 in train.tolist() and len(validation) == 4


def test_maps_are_standardised_by_channel(generator):
    first = 3 + 2 * torch.randn(90, 3, 4, 4, generator=generator)
    second = torch.cat([torch.randn(90, 1, 2, 2, generator=generator), torch.ones(90, 1, 2, 2)], 1)
    stored = StoredMaps(np.concatenate([first.flatten(1), second.flatten(1)], 1), [(3, 4), (2, 2)])
    rows = torch.arange(0, 90, 2)
    one, two = (n(m) for n, m in zip(standardisation(stored, rows), stored.take(rows), strict=True))
    expected = (first[rows] - first[rows].mean((0, 2, 3), keepdim=True)) / first[rows].std(
        (0, 2, 3), correction=0, keepdim=True
    )
    torch.testing.assert_close(one, expected, atol=1e-3, rtol=1e-3)
    assert two[:, 1].abs().max() == 0  # a channel that never fires is left at nought


def test_maps_are_computed_once_and_come_from_disk_as_they_were(data, tmp_path, monkeypatch):
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path))
    kept, free = small(), small()
    kept.keep_features = True
    stored, rows = kept.maps(data.train.images), torch.tensor([5, 99, 70])
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    for a, b in zip(stored.take(rows), free.maps(data.train.images).take(rows), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    kept.forget()
    monkeypatch.setattr("unseen.networks.feature_cache._complete", None)  # computing again would call it
    assert np.array_equal(kept.maps(data.train.images).rows, stored.rows)


def test_maps_that_are_not_finite_or_not_there(data):
    class Endless(nn.Module):
        def feature_maps(self, images):
            return [torch.full((len(images), 2, 4, 4), 1e6)]  # no half-precision number

    with pytest.raises(InputError, match="'endless': gives feature maps that are NaN or infinite"):
        Candidate("endless", Endless(), keep_features=False).maps(data.train.images)
    with pytest.raises(InputError, match="backbone 'flat': encoder Flatten: .*Give it a method feature_maps"):
        Candidate("flat", nn.Flatten(), keep_features=False).maps(data.train.images)


def test_tuning_starts_from_the_frozen_head_and_changes_a_copy(data):
    entrant = small()
    before = {key: value.clone() for key, value in entrant.encoder.state_dict().items()}
    (first, _) = TunedDetection(data).measure(entrant, SHORT, 0)
    assert first.chosen.count("rate") == 2
    assert all(torch.equal(value, before[key]) for key, value in entrant.encoder.state_dict().items())
    with pytest.raises(InputError, match="layer_decay: is 0"):
        TunedDetection(data, layer_decay=0)


def test_tuning_goes_on_where_the_frozen_head_ends(data):
    entrant, rows, few = small(), torch.arange(40), torch.arange(40, 48)
    budget = Budget(trials=1, detector_steps=60, tuning_steps=60)
    targets = centre_targets(data.train.boxes[:40], data.train.labels[:40], 3, side=24)

    def loss(task):
        detector, _ = task._fit(entrant, rows, few, budget, 0)
        with torch.inference_mode():
            return centre_loss(*detector(data.train, rows), targets).item()

    assert loss(TunedDetection(data, layer_decay=1.0)) < 0.97 * loss(Detection(data))


def test_a_killed_comparison_goes_on(data, tmp_path, monkeypatch):
    arena = BackboneArena([small(0), small(1), candidate("colours")], [Detection(data)], SHORT, seeds=(0, 1))
    calls, measure = [], Detection.measure

    def dying(self, entrant, budget, seed):
        calls.append((entrant.name, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, entrant, budget, seed)

    monkeypatch.setattr(Detection, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        arena.run(tmp_path / "scores.sqlite")
    frame = arena.run(tmp_path / "scores.sqlite")
    assert calls == [
        ("small 0", 0),
        ("small 0", 1),
        ("small 1", 0),
        ("small 1", 1),
        ("small 1", 1),
        ("colours", 0),
        ("colours", 1),
    ]
    assert len(frame) == 3 * 2 * 2 and set(frame.metric) == {"AP", "AP50"} and frame.higher_is_better.all()


def test_the_key_of_a_run_changes_with_boxes_and_options(data, folder):
    fewer = at_most(data, 30)
    tasks = [
        Detection(data),
        Detection(fewer),
        Detection(data, "named"),
        TunedDetection(data),
        TunedDetection(data, layer_decay=0.5),
    ]
    assert len({task.identity for task in tasks}) == len(tasks)
    assert Detection(open_boxes(folder)).identity == tasks[0].identity
    assert [len(fewer.train), len(fewer.tests[0])] == [30, 30]


def test_data_that_cannot_be_detected_in(data):
    with pytest.raises(InputError, match=r"split 'train': has boxes in 1 image\(s\)"):
        Detection(type(data)("few", data.classes, data.train.select(torch.arange(1)), data.tests))
    with pytest.raises(InputError, match="is not known for boxes.*'detection'"):
        tasks_of(data, ["detect"])


def test_without_the_extra_it_is_said_before_anything_is_computed(data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.cocoeval", None)
    with pytest.raises(MissingExtra, match=r"unseen\[boxes\]"):
        Detection(data)


def test_a_folder_with_boxes_on_the_command_line(folder, command, tmp_path):
    out = tmp_path / "out"
    arguments = (
        "backbones", folder, "--backbones", "pixels,pixels(side=2),colours", "--seeds", 1, "--trials", 1,
        "--examples", 30, "-o", out,
    )  # fmt: skip
    said = command(*arguments)
    assert said.code == 0, said.err
    assert "60 examples, 3 classes, 2 domains; 3 backbones" in said.out
    frame = pd.read_csv(out / "scores.csv")
    assert set(frame.task) == {"detection"} and set(frame.metric) == {"AP", "AP50"}
    assert json.loads((out / "ranking.json").read_text())["domains"] == "train, test"
    assert "AP50" in (out / "backbones.html").read_text()
    again = command(*arguments)
    assert again.code == 0 and pd.read_csv(out / "scores.csv").equals(frame)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--label", "x"), "--label: names a column, but a folder with boxes has none"),
        (("--tasks", "probe"), "task 'probe': is not known for boxes"),
        (("--backbones", "pixels,colours,hashed-words"), "reads texts"),
        (("--examples", 0), "examples: is 0"),
    ],
)
def test_what_is_wrong_with_boxes_is_said(folder, command, tmp_path, arguments, problem):
    said = command("backbones", folder, *arguments, "-o", tmp_path / "out")
    assert said.code == 2 and problem in " ".join(said.err.split())
    assert not (tmp_path / "out").exists()
