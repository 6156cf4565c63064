"""A small world of transfer: pretrained on printed letters with wrong labels, used on handwritten digits.

Images are white on black, float (N, 1, 14, 14): 28 x 28 pixels, halved by a mean, so that a pretraining takes
seconds.
"""

from __future__ import annotations

import string
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unseen.networks import Network, build_network
from unseen.shifts.builtin.digit_images import (
    FONTS,
    SIDE,
    mnist,
    optdigits,
    over_photographs,
    stratified_parts,
)
from unseen.shifts.corruptions import corrupt
from unseen.shifts.label_noise import noisy_labels
from unseen.shifts.sampling import derive_seed
from unseen.studies.pretraining_noise import TransferTask
from unseen.training.system import seeded

LETTERS = string.ascii_uppercase


def letters(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Capital letters in random fonts, turned, scaled, slanted and moved, some blurred, all with some noise."""
    labels = torch.randint(len(LETTERS), (count,), generator=generator)
    fonts = torch.randint(len(FONTS), (count,), generator=generator)
    images = _moved(_glyphs()[labels, fonts].float() / 255, generator, degrees=15, scale=0.2, shift=0.15)
    soft = nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    blurred = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return halved(torch.where(blurred, soft, images) + noise), labels


@lru_cache(maxsize=1)
def _glyphs() -> Tensor:
    """(letters, fonts, 1, 28, 28) uint8; read-only, since it is cached."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(get_data_path(), "fonts", "ttf")
    glyphs = torch.zeros(len(LETTERS), len(FONTS), 1, SIDE, SIDE, dtype=torch.uint8)
    for column, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 22)
        for row, letter in enumerate(LETTERS):
            canvas = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(canvas).text((SIDE / 2, SIDE / 2), letter, fill=255, font=font, anchor="mm")
            glyphs[row, column, 0] = torch.from_numpy(np.array(canvas))
    return glyphs


def pretrained_encoder(rate: float | None, seed: int, *, count: int = 8000, epochs: int = 15) -> Network:
    """A three-layer CNN with 64 features, trained on `count` letters of which a share `rate` is labelled wrongly.

    None gives the untrained network. Letters, initial weights and order are those of the seed for every rate.
    """
    with seeded(seed):
        network = build_network("cnn", (1, SIDE // 2, SIDE // 2), len(LETTERS))
    if rate is None:
        return network.eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    x, clean = letters(count, generator)
    y = torch.from_numpy(noisy_labels(clean.numpy(), rate, classes=len(LETTERS), seed=seed))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(count, generator=generator).split(128)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / len(batches))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return network.eval()


@torch.inference_mode()
def features_of(network: Network, images: Tensor) -> Tensor:
    """(N, 64) features of images (N, 1, 14, 14)."""
    return torch.cat([network.featurizer(part) for part in images.split(1024)])


def digit_task(seed: int, train: int = 1000, test: int = 1000) -> TransferTask:
    """Handwritten digits; the same test digits in five other styles, and digits of other writers and scanners.

    The second view of a training digit is itself, turned and moved a little.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    images, labels = mnist()
    first, second = stratified_parts(labels, 2, generator)
    train_rows = first[torch.randperm(len(first), generator=generator)[:train]]
    test_rows = second[torch.randperm(len(second), generator=generator)[:test]]
    pixels = images[train_rows].unsqueeze(1).float() / 255
    other, other_labels = optdigits()
    shifted = {
        name: (x, labels[test_rows]) for name, x in _styles(images[test_rows], seed, generator).items()
    }
    shifted["optdigits"] = (halved(other.unsqueeze(1).float() / 255), other_labels)
    return TransferTask(
        train=(halved(pixels), labels[train_rows]),
        test=(halved(images[test_rows].unsqueeze(1).float() / 255), labels[test_rows]),
        shifted=shifted,
        strong=halved(_moved(pixels, generator, degrees=8, scale=0.08, shift=0.06)),
    )


def _styles(images: Tensor, seed: int, generator: torch.Generator) -> dict[str, Tensor]:
    pixels = images.unsqueeze(1)
    damaged = {
        name: corrupt(pixels, kind, severity, seed=seed).float() / 255
        for name, kind, severity in (
            ("noise", "gaussian_noise", 4),
            ("blur", "gaussian_blur", 4),
            ("contrast", "contrast", 3),
        )
    }
    turned = _moved(pixels.float() / 255, generator, degrees=35, scale=0, shift=0)
    before = over_photographs(images, generator).float().mean(1, keepdim=True) / 255
    return {name: halved(x) for name, x in {**damaged, "rotation": turned, "background": before}.items()}


def halved(pixels: Tensor) -> Tensor:
    """(N, 1, 28, 28) in [0, 1] to (N, 1, 14, 14), about standardised."""
    return (nn.functional.avg_pool2d(pixels, 2) - 0.15) / 0.3


def _moved(
    images: Tensor, generator: torch.Generator, *, degrees: float, scale: float, shift: float
) -> Tensor:
    """Turned by at most `degrees`, scaled by 1 +- `scale` at most, slanted, moved by at most a share of the side."""
    draw = 2 * torch.rand(len(images), 5, generator=generator) - 1
    angle, size = draw[:, 0] * np.deg2rad(degrees), 1 + scale * draw[:, 1]
    cos, sin, slant = angle.cos() / size, angle.sin() / size, scale * draw[:, 2]
    matrix = torch.stack([cos, slant - sin, 2 * shift * draw[:, 3], sin, cos, 2 * shift * draw[:, 4]], 1)
    grid = nn.functional.affine_grid(matrix.view(-1, 2, 3), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)
