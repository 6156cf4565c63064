import sys

import numpy as np
import pytest
import torch

from unseen.arena.average_precision import average_precision
from unseen.errors import InputError, MissingExtra
from unseen.networks.centre_head import Found

pytest.importorskip("pycocotools")


def scene(generator, images=12, classes=3):
    """Boxes and detections near them, some of a wrong class, some of nothing."""
    boxes, labels, found = [], [], []
    for _ in range(images):
        count = int(torch.randint(0, 5, (1,), generator=generator))
        corner, size = (torch.rand(count, 2, generator=generator) * 0.5 for _ in range(2))
        box = torch.cat([corner, corner + size.clamp(min=0.05)], 1)
        label = torch.randint(classes, (count,), generator=generator)
        near = box.repeat(3, 1) + 0.03 * torch.randn(3 * count, 4, generator=generator)
        wrong = torch.rand(3 * count, generator=generator) < 0.2
        kind = torch.where(wrong, (label.repeat(3) + 1) % classes, label.repeat(3))
        score = torch.rand(3 * count, generator=generator)
        proper = (near[:, 2:] > near[:, :2]).all(1)
        found.append(Found(near[proper], kind[proper], score[proper]))
        boxes.append(box)
        labels.append(label)
    return found, boxes, labels


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_precision(found, boxes, labels, threshold, kind):
    """AP of one class: each detection in order of score takes the free box that it overlaps most; 101 recalls."""
    said = sorted(
        (-score, image, box)
        for image, each in enumerate(found)
        for box, label, score in zip(
            each.boxes.tolist(), each.labels.tolist(), each.scores.tolist(), strict=True
        )
        if label == kind
    )
    free = [
        [b for b, k in zip(bs.tolist(), ks.tolist(), strict=True) if k == kind]
        for bs, ks in zip(boxes, labels, strict=True)
    ]
    total, right, curve = sum(map(len, free)), 0, []
    for number, (_, image, box) in enumerate(said, 1):
        overlaps = [overlap(box, other) for other in free[image]]
        if overlaps and max(overlaps) >= threshold:
            free[image].pop(int(np.argmax(overlaps)))
            right += 1
        curve.append((right / total, right / number))
    recalls = np.linspace(0, 1, 101)
    return np.mean([max((p for r, p in curve if r >= wanted), default=0.0) for wanted in recalls])


def test_it_is_what_a_slow_obvious_computation_says(generator):
    found, boxes, labels = scene(generator)
    thresholds = np.linspace(0.5, 0.95, 10)
    each = np.array([[slow_precision(found, boxes, labels, t, k) for k in range(3)] for t in thresholds])
    said = average_precision(found, boxes, labels)
    assert said["AP"] == pytest.approx(each.mean(), abs=1e-9)
    assert said["AP50"] == pytest.approx(each[0].mean(), abs=1e-9)
    assert 0.1 < said["AP"] < said["AP50"] < 0.9  # neither end, where anything agrees


def test_what_is_there_scores_one_from_the_first_box_on(generator):
    _, boxes, labels = scene(generator)
    exact = [Found(b, k, torch.ones(len(b))) for b, k in zip(boxes, labels, strict=True)]
    assert average_precision(exact, boxes, labels) == pytest.approx({"AP": 1.0, "AP50": 1.0})
    one = [torch.tensor([[0.1, 0.1, 0.5, 0.5]])], [torch.tensor([0])]
    assert average_precision([Found(one[0][0], one[1][0], torch.ones(1))], *one)["AP"] == pytest.approx(1)


def test_scaling_an_axis_changes_nothing(generator):
    found, boxes, labels = scene(generator)
    scale = torch.tensor([640.0, 480, 640, 480])
    pixels = [Found(each.boxes * scale, each.labels, each.scores) for each in found]
    said = average_precision(found, boxes, labels)
    assert average_precision(pixels, [box * scale for box in boxes], labels) == pytest.approx(said)


def test_nothing_found_is_nought_and_classes_that_are_not_there_do_not_count(generator):
    _, boxes, labels = scene(generator)
    none = Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    assert average_precision([none] * len(boxes), boxes, labels) == {"AP": 0.0, "AP50": 0.0}
    box, label = torch.tensor([[0.1, 0.1, 0.5, 0.5]]), torch.tensor([0])
    both = Found(box.repeat(2, 1), torch.tensor([0, 7]), torch.tensor([0.5, 0.9]))
    assert average_precision([both], [box], [label])["AP"] == pytest.approx(1)


def test_what_is_found_in_a_group_is_neither_right_nor_wrong():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    labels, crowd = torch.tensor([0, 0]), torch.tensor([False, True])
    inside = torch.tensor([[0.6, 0.6, 0.7, 0.7], [0.7, 0.7, 0.9, 0.9]])
    found = [Found(torch.cat([inside, boxes[:1]]), torch.zeros(3).long(), torch.tensor([0.9, 0.8, 0.7]))]
    assert average_precision(found, [boxes], [labels], [crowd])["AP"] == pytest.approx(1)
    assert average_precision(found, [boxes], [labels])["AP"] < 0.5


def test_images_without_any_box_have_no_precision():
    none = Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    with pytest.raises(InputError, match="needs an image with a box"):
        average_precision([none], [torch.zeros(0, 4)], [torch.zeros(0).long()])


def test_without_the_extra_it_says_which_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(MissingExtra, match=r"unseen\[boxes\]"):
        average_precision([], [], [])


def test_the_evaluator_is_not_heard(generator, capsys):
    average_precision(*scene(generator))
    assert capsys.readouterr().out == ""
