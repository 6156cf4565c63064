"""Which corruptions there are, and how strong each is at severities 1 to 5.

The strengths are the published ones: for images of at least 64 pixels (the shorter side) those of ImageNet-C
(made at 224), for smaller ones those of CIFAR-10-C (made at 32). Lengths are in pixels and are not scaled
within a table, so that 224 and 32 agree with the published data; only elastic_transform is given, as it was
published, relative to the side. Below 32 pixels the CIFAR-10-C lengths stay as well, since scaled blurs of less
than a pixel would do nothing: on 8 x 8 images the same severity damages more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from unseen.shifts.corruptions import blur, digital, glass, noise, reference, spatter, weather

Strengths = tuple[tuple[Any, ...], ...]

LARGE = 64
"""From this many pixels of the shorter side on, the ImageNet-C strengths hold."""


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    function        (float images in [0, 1], random stream, *parameters) -> float images, not yet clamped
    imagenet, cifar parameters at severities 1 to 5 for images of at least 64 pixels, and for smaller ones
    extra           not one of the 15 that benchmarks average over
    published       the published computation, where it differs (`corrupt(..., reference=True)`)
    """

    name: str
    family: Literal["noise", "blur", "weather", "digital"]
    function: Callable[..., Tensor]
    imagenet: Strengths
    cifar: Strengths
    extra: bool = False
    published: Callable[..., Tensor] | None = None

    def parameters(self, severity: int, side: int) -> tuple[Any, ...]:
        """Arguments of `function` at a severity (1 to 5), for images whose shorter side has `side` pixels."""
        return (self.imagenet if side >= LARGE else self.cifar)[severity - 1]


def _single(*values: float) -> Strengths:
    return tuple((value,) for value in values)


# The published code takes a side of 244 where images have 224.
_E = 244 / 224

_ALL = (
    Corruption(
        "gaussian_noise",
        "noise",
        noise.gaussian_noise,
        imagenet=_single(0.08, 0.12, 0.18, 0.26, 0.38),
        cifar=_single(0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    Corruption(
        "shot_noise",
        "noise",
        noise.shot_noise,
        imagenet=_single(60, 25, 12, 5, 3),
        cifar=_single(500, 250, 100, 75, 50),
    ),
    Corruption(
        "impulse_noise",
        "noise",
        noise.impulse_noise,
        imagenet=_single(0.03, 0.06, 0.09, 0.17, 0.27),
        cifar=_single(0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    Corruption(
        "defocus_blur",
        "blur",
        blur.defocus_blur,
        imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    Corruption(
        "glass_blur",
        "blur",
        glass.glass_blur,
        imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        published=glass.glass_blur_published,
    ),
    Corruption(
        "motion_blur",
        "blur",
        blur.motion_blur,
        imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    Corruption(
        "zoom_blur",
        "blur",
        blur.zoom_blur,
        imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        cifar=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        published=reference.zoom_blur,
    ),
    Corruption(
        "snow",
        "weather",
        weather.snow,
        imagenet=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        cifar=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    Corruption(
        "frost",
        "weather",
        weather.frost,
        imagenet=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        cifar=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    Corruption(
        "fog",
        "weather",
        weather.fog,
        imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    Corruption(
        "brightness",
        "digital",
        digital.brightness,
        imagenet=_single(0.1, 0.2, 0.3, 0.4, 0.5),
        cifar=_single(0.05, 0.1, 0.15, 0.2, 0.3),
    ),
    Corruption(
        "contrast",
        "digital",
        digital.contrast,
        imagenet=_single(0.4, 0.3, 0.2, 0.1, 0.05),
        cifar=_single(0.75, 0.5, 0.4, 0.3, 0.15),
    ),
    Corruption(
        "elastic_transform",
        "digital",
        digital.elastic_transform,
        imagenet=(
            (2 * _E, 0.7 * _E, 0.1 * _E),
            (2 * _E, 0.08 * _E, 0.2 * _E),
            (0.05 * _E, 0.01 * _E, 0.02 * _E),
            (0.07 * _E, 0.01 * _E, 0.02 * _E),
            (0.12 * _E, 0.01 * _E, 0.02 * _E),
        ),
        cifar=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    Corruption(
        "pixelate",
        "digital",
        digital.pixelate,
        imagenet=_single(0.6, 0.5, 0.4, 0.3, 0.25),
        cifar=_single(0.95, 0.9, 0.85, 0.75, 0.65),
    ),
    Corruption(
        "jpeg_compression",
        "digital",
        digital.jpeg_compression,
        imagenet=_single(25, 18, 15, 10, 7),
        cifar=_single(80, 65, 58, 50, 40),
    ),
    Corruption(
        "speckle_noise",
        "noise",
        noise.speckle_noise,
        imagenet=_single(0.15, 0.2, 0.35, 0.45, 0.6),
        cifar=_single(0.06, 0.1, 0.12, 0.16, 0.2),
        extra=True,
    ),
    Corruption(
        "gaussian_blur",
        "blur",
        blur.gaussian_blur,
        imagenet=_single(1, 2, 3, 4, 6),
        cifar=_single(0.4, 0.6, 0.7, 0.8, 1),
        extra=True,
    ),
    Corruption(
        "spatter",
        "weather",
        spatter.spatter,
        imagenet=(
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        cifar=(
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        extra=True,
    ),
    Corruption(
        "saturate",
        "digital",
        digital.saturate,
        imagenet=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        cifar=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        extra=True,
        published=reference.saturate,
    ),
)

CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType({kind.name: kind for kind in _ALL})
"""Every corruption by name: the 15 of the benchmarks in their order, then the 4 extra ones."""
