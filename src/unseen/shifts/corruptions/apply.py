"""Corrupt a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.shifts.corruptions.catalogue import CORRUPTIONS, Corruption
from unseen.shifts.corruptions.randomness import RandomStream

SMALLEST = 8
"""Fewest pixels of a side: a swap of glass blur and the smallest disk need some room."""

# Pieces of 2 MB stay in a CPU's cache (larger ones were up to twice as slow); a GPU wants much work at once.
_VALUES_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}


@torch.no_grad()
def corrupt(
    images: Tensor,
    kind: str,
    severity: int,
    *,
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
    reference: bool = False,
) -> Tensor:
    """Damage each image as in ImageNet-C (shorter side >= 64 pixels) or CIFAR-10-C (smaller).

    images     (B, C, H, W) with C 1 or 3 and H, W >= 8, on any device; uint8, or float in [0, 1]
    kind       a name of `CORRUPTIONS`, such as "fog"
    severity   1 (slight) to 5 (strong)
    seed       of everything random
    ids        B whole numbers that name the images, by default 0 to B - 1. An image with the same id and seed
               is damaged the same way in every batch
    reference  compute as the published code does where that is not the evident meaning: glass_blur duplicates
               pixels instead of swapping, zoom_blur cuts whole pixels, saturate turns grey pixels red, and
               uint8 values are cut instead of rounded

    Returns images of the same shape, dtype and device; the input is left as it is. The random numbers are
    not those of the published files, which were made without a recorded seed. Frost is drawn, not
    photographed (`unseen.shifts.corruptions.weather.frost`). Raises InputError for anything that does not fit.

    Hendrycks & Dietterich, ICLR 2019 (https://arxiv.org/abs/1903.12261).
    """
    corruption = find(kind)
    check_severity(severity)
    _check_images(images)
    if not isinstance(seed, int):
        raise InputError("seed", f"is {seed!r}", "Give a whole number.")
    names = _check_ids(ids, len(images))
    function = corruption.published if reference and corruption.published else corruption.function
    parameters = corruption.parameters(severity, min(images.shape[-2:]))

    result = torch.empty_like(images)
    at_once = _VALUES_AT_ONCE.get(images.device.type, _VALUES_AT_ONCE["cpu"])
    size = max(1, at_once // images[0].numel()) if len(images) else 1
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        values = piece.float() / 255 if piece.dtype == torch.uint8 else piece.float()
        stream = RandomStream(seed, names[start : start + size], images.device)
        damaged = function(values, stream, *parameters).clamp(0, 1)
        if images.dtype == torch.uint8:
            # in reference mode a whole value that float32 left a hair too small must not fall by one
            damaged = (damaged * 255 + 1e-3).floor() if reference else (damaged * 255).round()
        result[start : start + size] = damaged
    return result


def find(kind: str) -> Corruption:
    """The corruption of that name, or an InputError that offers the nearest names."""
    if kind not in CORRUPTIONS:
        raise InputError(f"corruption {kind!r}", "is not known", nearest(kind, CORRUPTIONS))
    return CORRUPTIONS[kind]


def check_severity(severity: Any) -> None:
    if not isinstance(severity, int) or isinstance(severity, bool) or not 1 <= severity <= 5:
        raise InputError("severity", f"is {severity!r}", "Give 1 (slight), 2, 3, 4 or 5 (strong).")


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise InputError(
            "images",
            f"are a {type(images).__name__}",
            "Give a tensor of shape (batch, channels, height, width).",
        )
    if images.ndim != 4:
        raise InputError(
            "images",
            f"have shape {tuple(images.shape)}",
            "Give (batch, channels, height, width): four dimensions.",
        )
    if images.shape[1] not in (1, 3):
        raise InputError(
            "images", f"have {images.shape[1]} channels", "Give 1 (grey) or 3 (red, green, blue)."
        )
    if min(images.shape[-2:]) < SMALLEST:
        raise InputError(
            "images",
            f"have {images.shape[-2]} x {images.shape[-1]} pixels",
            f"Give at least {SMALLEST} pixels a side.",
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise InputError("images", f"have dtype {images.dtype}", "Give uint8, or float values in [0, 1].")
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            "images",
            f"have values from {float(images.min()):g} to {float(images.max()):g}",
            "Give float values in [0, 1], or uint8; corrupt images before they are normalised.",
        )


def _check_ids(ids: Sequence[int] | Tensor | None, count: int) -> Sequence[int]:
    if ids is None:
        return range(count)
    ids = [int(identity) for identity in ids]
    if len(ids) != count:
        raise InputError("ids", f"are {len(ids)} for {count} images", "Give one whole number for each image.")
    return ids
