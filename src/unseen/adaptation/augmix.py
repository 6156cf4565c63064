"""AugMix: convex mixtures of chains of simple image operations (Hendrycks et al. 2020, arXiv 1912.02781)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unseen.adaptation.augmentations import require_images
from unseen.shifts.batch import Inputs

CHAINS, LONGEST = 3, 3
LEVEL = 0.1
"""Greatest share of each operation's range: severity 1 of 10, as MEMO takes it."""

ROTATION, SHEAR, TRANSLATION = 30.0, 0.3, 1 / 3
"""Degrees, slope and share of the side at level 1."""

CROP = 1 / 8
"""Most that an image is moved before, as a share of its side (4 of 32 pixels for CIFAR-10)."""


def augmix(x: Inputs, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """Moved and mirrored images, mixed with a mixture of three chains of one to three operations each.

    x     (B, C, H, W), normalised as the network takes it; each image draws by itself
    flip  mirror every other image; not for digits and letters
    How pixels were normalised is not known here, so black and white are the least and greatest value of each image.
    Raises InputError for anything but images.
    """
    images = require_images(x)
    black = images.amin((1, 2, 3), keepdim=True)
    spread = (images.amax((1, 2, 3), keepdim=True) - black).clamp(min=1e-6)
    pixels = _moved((images - black) / spread, generator, flip)
    # Dirichlet(1, 1, 1) from exponential draws; Beta(1, 1) is uniform
    shares = -torch.rand(CHAINS, len(images), generator=generator).clamp(min=1e-9).log()
    shares = (shares / shares.sum(0)).to(images)
    chains = _chain(pixels.repeat(CHAINS, 1, 1, 1), generator).unflatten(0, (CHAINS, -1))
    mixture = torch.einsum("kb,kbchw->bchw", shares, chains)
    keep = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    return black + torch.lerp(mixture, pixels, keep) * spread


def _chain(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image after one to three operations of its own."""
    length = torch.randint(1, LONGEST + 1, (len(pixels),), generator=generator)
    for step in range(LONGEST):
        choice = torch.randint(len(OPERATIONS), (len(pixels),), generator=generator)
        level = LEVEL * (0.1 + 0.9 * torch.rand(len(pixels), generator=generator))
        level = torch.where(torch.rand(len(pixels), generator=generator) < 0.5, -level, level)
        for index, operation in enumerate(OPERATIONS):
            rows = ((choice == index) & (step < length)).nonzero().squeeze(1).to(pixels.device)
            if len(rows):
                changed = operation(pixels[rows], level.to(pixels)[rows])
                pixels = pixels.index_copy(0, rows, changed)
    return pixels


def autocontrast(pixels: Tensor, level: Tensor | None = None) -> Tensor:
    """Each channel stretched to [0, 1]; constant ones stay."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) / (high - low).clamp(min=1e-6), pixels)


def equalize(pixels: Tensor, level: Tensor | None = None) -> Tensor:
    """Each channel of 256 values gets an even histogram, by the rule of PIL's ImageOps.equalize."""
    values = (pixels * 255).round().long().clamp(0, 255).flatten(2)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    last = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    table = (step // 2 + histogram.cumsum(2) - histogram) // step.clamp(min=1)
    found = torch.where(step > 0, table.clamp(max=255).gather(2, values), values)
    return (found.to(pixels.dtype) / 255).view_as(pixels)


def posterize(pixels: Tensor, level: Tensor) -> Tensor:
    """Only the highest 4 of 8 bits are kept, fewer at levels from 0.25."""
    bits = 4 - (4 * level.abs()).floor().view(-1, 1, 1, 1)
    size = 2 ** (8 - bits)
    return ((pixels * 255).round() / size).floor() * size / 255


def solarize(pixels: Tensor, level: Tensor) -> Tensor:
    """Values from 1 - level are inverted."""
    threshold = (256 - (256 * level.abs()).floor()).view(-1, 1, 1, 1)
    return torch.where((pixels * 255).round() < threshold, pixels, 1 - pixels)


def _warp(pixels: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Affine map by a 2 x 3 matrix of (B,) entries in half sides; black comes in at the borders."""
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, align_corners=False)


def rotate(pixels: Tensor, level: Tensor) -> Tensor:
    angle, ratio = level * math.radians(ROTATION), pixels.shape[2] / pixels.shape[3]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(level)
    return _warp(pixels, [[cos, -sin * ratio, zero], [sin / ratio, cos, zero]])


def shear_x(pixels: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _warp(pixels, [[one, SHEAR * level, zero], [zero, one, zero]])


def shear_y(pixels: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _warp(pixels, [[one, zero, zero], [SHEAR * level, one, zero]])


def translate_x(pixels: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _warp(pixels, [[one, zero, 2 * TRANSLATION * level], [zero, one, zero]])


def translate_y(pixels: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _warp(pixels, [[one, zero, zero], [zero, one, 2 * TRANSLATION * level]])


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    autocontrast,
    equalize,
    posterize,
    solarize,
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def _moved(pixels: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Moved by whole pixels up to `CROP` of the side, and every other one mirrored."""
    draws = torch.rand(3, len(pixels), generator=generator)
    mirror = torch.where(draws[2] < 0.5, -1.0, 1.0) if flip else torch.ones(len(pixels))
    shifts = [
        # half sides: a pixel is 2 / side
        ((2 * draw - 1) * CROP * side).round() * 2 / side
        for draw, side in zip(draws[:2], (pixels.shape[3], pixels.shape[2]), strict=True)
    ]
    one, zero = torch.ones(len(pixels)), torch.zeros(len(pixels))
    rows = [[mirror, zero, shifts[0]], [zero, one, shifts[1]]]
    return _warp(pixels, [[entry.to(pixels) for entry in row] for row in rows])
