"""Corruptions as the published code computes them, where that is not what their name says.

`corrupt(..., reference=True)` takes these instead, to compare with ImageNet-C and CIFAR-10-C. Published glass
blur is in glass.py beside the other one. The published code also cuts values to 8 bits instead of rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unseen.shifts.corruptions.blur import mean_over_zooms
from unseen.shifts.corruptions.digital import change_saturation
from unseen.shifts.corruptions.randomness import RandomStream


def zoom_blur(images: Tensor, stream: RandomStream, stop: float, step: float) -> Tensor:
    """Zoom blur with crops of whole pixels: small images are hardly enlarged, and off centre."""
    return mean_over_zooms(images, stop, step, clipped_zoom)


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """The published zoom: cut ceil(size / factor) pixels, enlarge corner to corner, trim the rest."""
    cut, grown, trimmed = [], [], []
    for size in images.shape[-2:]:
        kept = math.ceil(size / factor)
        start, new = (size - kept) // 2, round(kept * factor)
        trim = (new - size) // 2
        cut.append(slice(start, start + kept))
        grown.append(new)
        trimmed.append(slice(trim, trim + size))
    enlarged = F.interpolate(images[..., cut[0], cut[1]], size=grown, mode="bilinear", align_corners=True)
    return enlarged[..., trimmed[0], trimmed[1]]


def saturate(images: Tensor, stream: RandomStream, factor: float, offset: float) -> Tensor:
    """Saturation as through HSV, where grey has hue 0: an offset turns grey pixels red."""
    changed = change_saturation(images, factor, offset)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    red = torch.cat([value, value * (1 - offset), value * (1 - offset)], 1)
    return torch.where(value == least, red, changed)
