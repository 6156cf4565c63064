"""A small shift of arrays, encoders that tell more or less of it, and a folder of images with boxes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from unseen.arena import Candidate
from unseen.papers.styled_characters import CHARACTERS, glyphs
from unseen.shifts.shift import Shift


class Columns(nn.Module):
    """The first `kept` of six columns, through a map that starts as the identity and can be tuned."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.layer = kept, nn.Linear(6, 6, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(6))

    def forward(self, x):
        return self.layer(x)[:, : self.kept]


@pytest.fixture
def toy():
    """toy(name, kept=6, **declared) -> Candidate."""

    def make(name, kept=6, **declared):
        return Candidate(name, Columns(kept), reads="array", keep_features=False, **declared)

    return make


@pytest.fixture
def toy_shift():
    """toy_shift(count, classes=3, domains=2): class means on the axes; later domains lie along the sixth."""

    def make(count=240, classes=3, domains=2, seed=0, name="toy"):
        generator = torch.Generator().manual_seed(seed)
        labels, domain = torch.arange(count) % classes, torch.arange(count) // classes % domains
        inputs = torch.randn(count, 6, generator=generator)
        inputs[torch.arange(count), labels] += 4
        inputs[:, 5] += 2.0 * domain
        classes, domains = [f"c{i}" for i in range(classes)], [f"d{i}" for i in range(domains)]
        return Shift(name, "array", inputs, labels, domain, tuple(classes), tuple(domains))

    return make


@pytest.fixture(scope="session")
def write_boxes():
    """write_boxes(folder, {split: images}, classes="AO7", seed=0, size=(96, 72)) -> folder in COCO's format."""
    return _write_boxes


def _write_boxes(folder, counts, classes="AO7", seed=0, size=(96, 72)):
    """`folder`/SPLIT/annotations.json and images of (width, height) pixels, `counts` of each split: letters on crops
    of photographs that packages ship."""
    generator = np.random.default_rng(seed)
    shapes, labels = glyphs()
    photographs = load_sample_images().images
    for split, count in counts.items():
        place = folder / split
        place.mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            picture, found = _picture(generator, photographs, shapes, labels, classes, size)
            Image.fromarray(picture).save(place / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
            annotations += [
                {"id": len(annotations) + i, "image_id": number, "category_id": 5 + kind, "bbox": box}
                for i, (kind, box) in enumerate(found)
            ]
        categories = [{"id": 5 + index, "name": name} for index, name in enumerate(classes)]
        tables = {"images": images, "annotations": annotations, "categories": categories}
        (place / "annotations.json").write_text(json.dumps(tables))
    return folder


def _picture(generator, photographs, shapes, labels, classes, size):
    """uint8 (height, width, 3), and (class, x, y, width, height) of one to three letters that do not overlap."""
    width, height = size
    photograph = photographs[generator.integers(len(photographs))]
    y, x = (generator.integers(photograph.shape[axis] - size[1 - axis]) for axis in (0, 1))
    canvas = photograph[y : y + height, x : x + width].astype(float)
    found = []
    for _ in range(generator.integers(1, 4)):
        kind = int(generator.integers(len(classes)))
        rows = (labels == CHARACTERS.index(classes[kind])).nonzero().squeeze(1)
        glyph = (255 * shapes[rows[generator.integers(len(rows))]]).byte().numpy()
        side = int(generator.integers(height // 3, height // 2 + 1))
        ink = np.asarray(Image.fromarray(glyph).resize((side, side))) / 255
        top, left = generator.integers(height - side), generator.integers(width - side)
        down, across = ((ink > 0.3).any(axis).nonzero()[0] for axis in (1, 0))
        box = [int(left + across[0]), int(top + down[0]), *(int(np.ptp(each)) + 1 for each in (across, down))]
        if not any(_meet(box, other) for _, other in found):
            found.append((kind, box))
            part = canvas[top : top + side, left : left + side]
            part += ink[..., None] * (generator.integers(0, 256, 3) - part)
    return canvas.astype(np.uint8), found


def _meet(a, b):
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))
