import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from unseen.adaptation.augmix import (
    OPERATIONS,
    augmix,
    autocontrast,
    equalize,
    posterize,
    rotate,
    shear_x,
    solarize,
    translate_x,
    translate_y,
)
from unseen.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures():
    """Grey uint8 values 40 to 200 of different distributions, (4, 1, 24, 24)."""
    values = torch.rand(4, 1, 24, 24, generator=generator(1)) ** torch.tensor([0.3, 1, 2, 4]).view(4, 1, 1, 1)
    return (40 + 160 * values).round()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: equalize(p), ImageOps.equalize),
        (lambda p: posterize(p, torch.full((4,), 0.1)), lambda image: ImageOps.posterize(image, 4)),
        (lambda p: posterize(p, torch.full((4,), 0.5)), lambda image: ImageOps.posterize(image, 2)),
        (lambda p: solarize(p, torch.full((4,), -0.25)), lambda image: ImageOps.solarize(image, 192)),
    ],
)
def test_operations_are_those_of_pil(ours, theirs, pictures):
    found = ours(pictures / 255) * 255
    for row, picture in enumerate(pictures):
        expected = np.asarray(theirs(Image.fromarray(picture[0].byte().numpy())))
        np.testing.assert_allclose(found[row, 0].numpy(), expected, atol=1e-3)


def test_autocontrast_is_pils_up_to_rounding(pictures):
    found = autocontrast(pictures / 255) * 255
    for row, picture in enumerate(pictures):
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(picture[0].byte().numpy())), dtype=float)
        np.testing.assert_allclose(found[row, 0].numpy(), expected, atol=1.001)  # PIL rounds down
    flat = torch.full((1, 2, 4, 4), 0.3)
    assert torch.equal(autocontrast(flat), flat)


def test_a_level_moves_each_image_its_own_way():
    x = torch.zeros(2, 1, 9, 9)
    x[:, :, 4, 4] = 1
    level = torch.tensor([1 / 3, -2 / 3])  # of a third of nine pixels: one and two pixels
    right, down = translate_x(x, level), translate_y(x, level)
    assert [int(image.argmax()) % 9 for image in right] == [3, 6]
    assert [int(image.argmax()) // 9 for image in down] == [3, 6]
    sheared = shear_x(torch.ones(1, 1, 9, 9), torch.tensor([1.0]))
    assert (sheared[0, 0, 4] == 1).all() and (sheared[0, 0, 0] < 1).any() and (sheared[0, 0, 8] < 1).any()


def test_a_turn_is_no_shear_on_wide_images():
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 10:31] = 1  # a line of 21 pixels
    turned = rotate(x, torch.tensor([1.0]))  # 30 degrees
    rows, columns = (turned[0, 0] > 0.2).nonzero().unbind(1)
    slope = np.polyfit(columns.numpy(), rows.numpy(), 1)[0]
    assert math.isclose(abs(math.degrees(math.atan(slope))), 30, abs_tol=3)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_stay_within_black_and_white(operation, pictures):
    level = torch.linspace(-0.1, 0.1, 4)
    found = operation(pictures / 255, level)
    assert found.shape == pictures.shape and float(found.min()) >= 0 and float(found.max()) <= 1 + 1e-6


def test_mixtures_are_seeded_like_the_image_and_in_its_range():
    x = torch.randn(8, 3, 16, 16, generator=generator(2)).cumsum(2).cumsum(3) / 5
    first, again, other = (augmix(x, generator(seed), flip=False) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= float(x.min()) - 1e-4 and float(first.max()) <= float(x.max()) + 1e-4
    likeness = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(x, first, strict=True)
    ]
    assert min(likeness) > 0.2 and sum(likeness) / 8 > 0.6
    same = augmix(x[:1].repeat(8, 1, 1, 1), generator())
    assert len({float(image.sum()) for image in same}) == 8  # each draws by itself


def test_only_images_are_mixed():
    with pytest.raises(InputError, match="no augmentation is known"):
        augmix(torch.rand(3, 4), generator())
