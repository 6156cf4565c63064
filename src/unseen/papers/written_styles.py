"""Digits in styles of writing: a written table of facts about them, and a renderer that follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, max_pool2d, pad

from unseen.extrapolation import DomainSpec, ListProposer, RandomProposer
from unseen.shifts.builtin.digit_images import FONTS, SIDE

SANS = ("DejaVuSans", "DejaVuSans-Oblique", "cmss10")
LIGHT = ("cmss10", "STIXGeneral", "cmr10", "DejaVuSans")
ITALIC = ("cmti10", "STIXGeneralItalic", "DejaVuSerif-Italic")
SERIF = ("DejaVuSerif", "STIXGeneral", "cmr10", "STIXGeneralBol")
MONO = ("DejaVuSansMono", "cmtt10", "DejaVuSansMono-Oblique")
BOLD = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "cmb10", "DejaVuSerif-Bold")

STYLES: Mapping[str, tuple[Sequence[str], float, float, float, float, float, float]] = {
    # what people write with        fonts  turn slant wobble pen blur size
    "ballpoint on a form": (SANS, 8, 0.25, 1.6, 0.3, 0.5, 0.90),
    "pencil in a notebook": (LIGHT, 10, 0.30, 2.0, 0.2, 0.7, 0.85),
    "felt marker on a box": (SANS, 10, 0.20, 1.8, 1.6, 0.6, 1.05),
    "fountain pen in a letter": (ITALIC, 6, 0.40, 1.4, 0.5, 0.5, 0.90),
    "chalk on a blackboard": (SANS, 8, 0.20, 2.2, 1.0, 0.9, 1.00),
    "child's first numbers": (SANS, 15, 0.30, 3.2, 0.8, 0.6, 1.05),
    "amount on a cheque": (ITALIC, 8, 0.35, 2.0, 0.6, 0.5, 0.85),
    "postcode on an envelope": (SANS, 10, 0.35, 2.4, 0.6, 0.6, 1.00),
    "brush lettering": (SERIF, 8, 0.25, 2.0, 1.8, 0.8, 1.00),
    "prescription in a hurry": (ITALIC, 12, 0.50, 3.0, 0.3, 0.5, 0.90),
    "technical drawing": (LIGHT, 3, 0.20, 0.8, 0.3, 0.4, 0.90),
    "receipt of a till": (MONO, 3, 0.05, 0.5, 0.3, 0.8, 0.80),
    "low-resolution scan": (SANS, 6, 0.25, 1.6, 0.8, 1.5, 0.95),
    "fax of a form": (SANS, 6, 0.25, 1.8, 0.9, 1.1, 0.90),
    "score on a whiteboard": (SANS, 10, 0.30, 2.4, 1.2, 0.6, 1.05),
    "paint on a wall": (BOLD, 8, 0.20, 1.8, 1.0, 0.9, 1.05),
}
"""Largest turn in degrees, largest slant, wobble of the pen and its width in pixels, blur in pixels, size against
the printed one: what a language model would say of the places where people leave numbers, written by hand here
before any result."""

HANDS: Mapping[str, Mapping[str, float]] = {
    "": {},
    ", in haste": {"slant": 1.3, "wobble": 1.3},
    ", with care": {"slant": 0.7, "wobble": 0.7, "turn": 0.7},
    ", large and heavy": {"pen": 1.6, "size": 1.1},
}
"""How four people differ: factors."""

PARAMETERS = ("turn", "slant", "wobble", "pen", "blur", "size")


def knowledge() -> ListProposer:
    """64 domains: 16 places where people write, as four hands do. The first 16 are the places, in one hand."""
    specs = []
    for hand, factors in HANDS.items():
        for name, (fonts, *values) in STYLES.items():
            facts = {k: v * factors.get(k, 1.0) for k, v in zip(PARAMETERS, values, strict=True)}
            specs.append(
                DomainSpec(name + hand, f"Digits, {name}{hand}", parameters={"fonts": fonts, **facts})
            )
    return ListProposer(specs)


def plain_fonts() -> ListProposer:
    """64 domains without knowledge of handwriting: 21 fonts, turned by up to 5 degrees so that no two images are
    the same, in three sizes, and one of them in a fourth."""
    sizes = (1.0, 0.9, 1.1, 0.8)
    specs = [
        DomainSpec(
            f"{font} at {size:g}",
            parameters={"fonts": (font,), **dict.fromkeys(PARAMETERS, 0.0), "turn": 5.0, "size": size},
        )
        for size in sizes
        for font in FONTS
    ]
    return ListProposer(specs[:64])


def random_changes(seed: int) -> RandomProposer:
    """One font under random affine changes and noise: diversity without knowledge."""
    ranges: dict[str, Any] = {
        "fonts": [("DejaVuSans",)],
        "turn": (0.0, 20.0),
        "slant": (0.0, 0.5),
        "wobble": [0.0],
        "pen": [0.0],
        "blur": [0.0],
        "size": (0.75, 1.1),
        "noise": (0.0, 0.15),
    }
    return RandomProposer(ranges, seed=seed)


def random_ranges(seed: int) -> RandomProposer:
    """One font a domain and all that the renderer can do, at random: what of knowledge lies in the ranges alone."""
    ranges: dict[str, Any] = {
        "fonts": [(font,) for font in FONTS],
        "turn": (0.0, 15.0),
        "slant": (0.0, 0.6),
        "wobble": (0.0, 4.0),
        "pen": (0.0, 2.5),
        "blur": (0.4, 1.5),
        "size": (0.8, 1.15),
    }
    return RandomProposer(ranges, seed=seed)


@cache
def glyph(digit: str, font: str) -> Tensor:
    """A digit in one of Matplotlib's fonts, white on black, float (28, 28) in [0, 1], 20 pixels high."""
    from pathlib import Path

    import numpy as np
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    typeface = ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", f"{font}.ttf")), 4 * 26)
    canvas = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(canvas).text((2 * SIDE, 2 * SIDE), digit, fill=255, font=typeface, anchor="mm")
    return torch.from_numpy(np.array(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))).float() / 255


def render(parameters: Mapping[str, Any], digit: str, n: int, generator: torch.Generator) -> Tensor:
    """n images uint8 (n, 1, 28, 28) of a digit: a font, turned, slanted, wobbling, in a pen's width, blurred."""
    fonts = parameters["fonts"]
    draws = torch.rand(n, 6, generator=generator)
    images = torch.stack([glyph(digit, fonts[int(u * len(fonts))]) for u in draws[:, 0].tolist()])[:, None]
    both = 2 * draws - 1
    wobble = parameters["wobble"] * (0.5 + draws[:, 5])
    images = moved(
        images,
        angle=both[:, 1] * math.radians(parameters["turn"]),
        slant=both[:, 2] * parameters["slant"],
        size=parameters["size"] * (1 + 0.1 * both[:, 3] * (parameters["turn"] > 0)),
        wobble=wobble,
        generator=generator,
    )
    images = widened(images, parameters["pen"])
    if parameters["blur"]:
        images = blurred(images, parameters["blur"])
    if parameters.get("noise"):
        images = images + parameters["noise"] * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 1, H, W), each under the usual affine changes for digits: turned by up to 15 degrees, slanted by up
    to 0.2, scaled by up to 15 %, moved by up to 2 pixels."""
    both = 2 * torch.rand(len(images), 3, generator=generator) - 1
    return moved(
        images,
        angle=both[:, 0] * math.radians(15),
        slant=0.2 * both[:, 1],
        size=1 + 0.15 * both[:, 2],
        wobble=torch.zeros(len(images)),
        generator=generator,
        shift=2.0,
    )


def moved(
    images: Tensor,
    *,
    angle: Tensor,
    slant: Tensor,
    size: Tensor,
    wobble: Tensor,
    generator: torch.Generator,
    shift: float = 0.0,
) -> Tensor:
    """Images (N, 1, H, W), each turned (radians), slanted, scaled, moved by up to `shift` pixels, and bent: points
    move by `wobble` pixels (standard deviation), smoothly, as a grid of 5 x 5 random moves says."""
    cos, sin = angle.cos() / size, angle.sin() / size
    right, down = (2 * torch.rand(2, len(images), generator=generator) - 1) * shift * 2 / images.shape[-1]
    matrix = torch.stack([cos, slant * cos - sin, right, sin, slant * sin + cos, down], 1).view(-1, 2, 3)
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    bend = (
        torch.randn(len(images), 2, 5, 5, generator=generator)
        * wobble.view(-1, 1, 1, 1)
        * 2
        / images.shape[-1]
    )
    smooth = interpolate(bend, images.shape[-2:], mode="bicubic", align_corners=True)
    return grid_sample(images, grid + smooth.permute(0, 2, 3, 1), align_corners=False)


def widened(images: Tensor, pixels: float) -> Tensor:
    """Strokes wider by a number of pixels from 0; between whole numbers, a mixture of both."""
    whole, part = int(pixels), pixels - int(pixels)
    for _ in range(whole):
        images = _dilated(images)
    return images if not part else (1 - part) * images + part * _dilated(images)


def blurred(images: Tensor, deviation: float, radius: int = 4) -> Tensor:
    steps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(steps**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    across = conv2d(pad(images, (radius, radius, 0, 0)), kernel)
    return conv2d(pad(across, (0, 0, radius, radius)), kernel.transpose(2, 3))


def _dilated(images: Tensor) -> Tensor:
    """One pixel wider: half a pixel on each side, by the mean of 3 x 3 dilation and the image."""
    return (images + max_pool2d(images, 3, 1, 1)) / 2
