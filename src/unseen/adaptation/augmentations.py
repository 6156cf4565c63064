"""Random changes of normalised images that leave the class as it is (or, shuffled patches, destroy it)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.shifts.batch import Inputs

Augment = Callable[[Inputs, torch.Generator], Inputs]
"""Inputs (B, ...) of a network and the source of randomness to changed inputs of the same shape."""

ROTATION, TRANSLATION, SCALE = 15.0, 1 / 16, 0.1
BRIGHTNESS, CONTRAST, SATURATION, GAMMA = 0.4, 0.3, 0.5, 0.3
BLUR, NOISE = 0.5, 0.005


def augment_images(x: Inputs, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """Geometry, colour, blur and noise of the size that CoTTA (Wang et al. 2022) draws them; each image by itself.

    x     (B, C, H, W), normalised as the network takes it
    flip  mirror every other image; not for digits and letters
    Rotation by up to 15 degrees, translation by a 16th, scale by a tenth; factors of brightness up to 0.4 from one,
    contrast 0.3, saturation 0.5, and an exponent up to 0.3 from one. How pixels were normalised is not known here,
    so black and white are the least and greatest value of each image, and hues stay as they are.
    Raises InputError for anything but images.
    """
    images = _affine(require_images(x), generator, flip)
    black = images.amin((1, 2, 3), keepdim=True)
    spread = (images.amax((1, 2, 3), keepdim=True) - black).clamp(min=1e-6)
    pixels = (images - black) / spread
    pixels = (pixels * _factor(pixels, BRIGHTNESS, generator)).clamp(0, 1)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * _factor(pixels, CONTRAST, generator)).clamp(0, 1)
    grey = pixels.mean(1, keepdim=True)
    pixels = (grey + (pixels - grey) * _factor(pixels, SATURATION, generator)).clamp(1e-8, 1)
    pixels = pixels ** _factor(pixels, GAMMA, generator)
    pixels = _blur(pixels, BLUR * float(torch.rand((), generator=generator)))
    pixels = pixels + NOISE * torch.randn(pixels.shape, generator=generator).to(pixels)
    return black + pixels.clamp(0, 1) * spread


def shuffle_patches(x: Inputs, patches: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) cut into patches x patches and put together in a random order, each in its own.

    A side that does not divide is scaled (bilinear) to the next smaller multiple and back.
    """
    images = require_images(x)
    height, width = (side // patches * patches for side in images.shape[2:])
    if not height or not width:
        raise InputError(
            "images",
            f"have {images.shape[2]} x {images.shape[3]} pixels",
            f"They are cut into {patches} x {patches} patches: give larger ones, or fewer patches.",
        )
    count, size = patches * patches, images.shape[2:]
    images = _resize(images, (height, width))
    tiles = images.unflatten(3, (patches, -1)).unflatten(2, (patches, -1))  # (B, C, p, h, p, w)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, p * p, C, h, w)
    order = torch.rand(len(tiles), count, generator=generator).argsort(1).to(tiles.device)
    tiles = tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]
    tiles = tiles.unflatten(1, (patches, patches)).permute(0, 3, 1, 4, 2, 5)  # (B, C, p, h, p, w)
    return _resize(tiles.flatten(4, 5).flatten(2, 3), size)


def require_images(x: Inputs) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        what = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(
            "inputs",
            f"are {what}, for which no augmentation is known",
            "Give float images (batch, channels, height, width), or a function of your own as `augment`.",
        )
    return x


def _factor(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) in [1 - most, 1 + most)."""
    return (1 + most * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)).to(images)


def _affine(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    draws = 2 * torch.rand(5, len(images), generator=generator) - 1
    angle, scale = draws[0] * math.radians(ROTATION), 1 + SCALE * draws[1]
    mirror = torch.where(draws[4] < 0, -1.0, 1.0) if flip else torch.ones(len(images))
    ratio = images.shape[2] / images.shape[3]  # grid coordinates are in half sides: a turn must not shear
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = 2 * TRANSLATION * draws[2:4]
    rows = [
        torch.stack([cos * mirror, -sin * ratio, shift[0]], 1),
        torch.stack([sin / ratio * mirror, cos, shift[1]], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian of 5 x 5 pixels, both directions one after the other."""
    offsets = torch.arange(-2, 3, dtype=images.dtype, device=images.device)
    kernel = torch.softmax(-offsets.square() / (2 * max(sigma, 1e-3) ** 2), 0)
    channels = images.shape[1]
    for shape, padding in (((1, 1, 5, 1), (0, 0, 2, 2)), ((1, 1, 1, 5), (2, 2, 0, 0))):
        padded = nn.functional.pad(images, padding, mode="replicate")
        images = nn.functional.conv2d(
            padded, kernel.view(shape).expand(channels, 1, *shape[2:]), groups=channels
        )
    return images


def _resize(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return nn.functional.interpolate(images, tuple(size), mode="bilinear", antialias=True)
