"""Letters and digits in the fonts that Matplotlib ships, in styles drawn at random: a corpus to pretrain on."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, max_pool2d, pad

from unseen.shifts.builtin.digit_images import FONTS, SIDE

CHARACTERS = string.ascii_uppercase + string.digits


@lru_cache(maxsize=1)
def glyphs() -> tuple[Tensor, Tensor]:
    """Every character in every font, white on black: float (756, 28, 28) in [0, 1], and its index in CHARACTERS."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    paths = [Path(get_data_path(), "fonts", "ttf", f"{name}.ttf") for name in FONTS]
    fonts = [ImageFont.truetype(str(path), 4 * 24) for path in paths]
    images = []
    for character in CHARACTERS:
        for font in fonts:
            canvas = Image.new("L", (4 * SIDE, 4 * SIDE))  # drawn large and reduced, for soft edges
            middle = (2 * SIDE, 2 * SIDE)
            ImageDraw.Draw(canvas).text(middle, character, fill=255, font=font, anchor="mm")
            images.append(np.array(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)))
    labels = torch.arange(len(CHARACTERS)).repeat_interleave(len(FONTS))
    return torch.from_numpy(np.stack(images)).float() / 255, labels


@dataclass(frozen=True)
class Style:
    """Largest changes; each image draws its own, evenly from zero (or both signs) to the largest.

    rotation (degrees), shear, scale (relative), move (pixels), thicken (share of images with wider strokes),
    ramp (brightness of a background that grows from one side to the other), invert (share of images),
    blur (pixels, standard deviation), noise (standard deviation of pixels in [0, 1])
    """

    rotation: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    move: float = 0.0
    thicken: float = 0.0
    ramp: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


BROAD = Style(35, 0.3, 0.2, 3, 0.3, 0.6, 0.5, 1.2, 0.3)
"""What the corpus is drawn in."""


def corpus_batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (size, 1, 28, 28) in [0, 1] of random characters in random styles, and their labels."""
    images, labels = glyphs()
    rows = torch.randint(len(labels), (size,), generator=generator)
    return styled(images[rows], BROAD, generator), labels[rows]


def styled(images: Tensor, style: Style, generator: torch.Generator) -> Tensor:
    """Images (N, 28, 28) in [0, 1] with random changes up to those of a style, (N, 1, 28, 28)."""
    count = len(images)
    draws = torch.rand(count, 10, generator=generator)
    both = 2 * draws - 1
    pixels = images[:, None]
    thick = (draws[:, 0] < style.thicken).view(-1, 1, 1, 1)
    pixels = torch.where(thick, max_pool2d(pixels, 3, 1, 1), pixels)
    if style.rotation or style.shear or style.scale or style.move:
        angle = both[:, 1] * math.radians(style.rotation)
        size, shear = 1 + style.scale * both[:, 2], style.shear * both[:, 3]
        offset = both[:, 4:6] * 2 * style.move / SIDE
        cos, sin = angle.cos() / size, angle.sin() / size
        across = torch.stack([cos, shear * cos - sin, offset[:, 0]], 1)
        down = torch.stack([sin, shear * sin + cos, offset[:, 1]], 1)
        grid = affine_grid(torch.stack([across, down], 1), list(pixels.shape), align_corners=False)
        pixels = grid_sample(pixels, grid, align_corners=False)
    if style.ramp:
        direction = 2 * math.pi * draws[:, 6]
        axis = torch.linspace(-1, 1, SIDE)
        slope = direction.cos().view(-1, 1, 1) * axis + direction.sin().view(-1, 1, 1) * axis[:, None]
        background = style.ramp * draws[:, 7].view(-1, 1, 1) * (slope / math.sqrt(2) + 1) / 2
        pixels = torch.maximum(pixels, background[:, None])
    pixels = torch.where((draws[:, 8] < style.invert).view(-1, 1, 1, 1), 1 - pixels, pixels)
    if style.blur:
        pixels = _blurred(pixels, style.blur * draws[:, 9])
    if style.noise:
        amount = style.noise * torch.rand(count, 1, 1, 1, generator=generator)
        pixels = pixels + amount * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp(0, 1)


def _blurred(pixels: Tensor, deviation: Tensor, radius: int = 4) -> Tensor:
    """Each image with a Gaussian kernel of its own, along rows and then columns."""
    steps = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-(steps**2) / (2 * deviation.clamp(min=1e-2)[:, None] ** 2))
    kernels = kernels / kernels.sum(1, keepdim=True)
    padded = pad(pixels.transpose(0, 1), (radius,) * 4, mode="replicate")
    across = conv2d(padded, kernels[:, None, None], groups=len(pixels))
    return conv2d(across, kernels[:, None, :, None], groups=len(pixels)).transpose(0, 1)
