"""Spatter: drops of water or splashes of mud on the lens. Images are float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unseen.shifts.corruptions.filters import luminance, smooth
from unseen.shifts.corruptions.randomness import RandomStream

_PALE_TURQUOISE = (175 / 255, 238 / 255, 238 / 255)
_MUD_BROWN = (63 / 255, 42 / 255, 20 / 255)
_FARTHEST = 20  # pixels: farther from a drop's rim the shading stays the same


def spatter(
    images: Tensor,
    stream: RandomStream,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Tensor:
    """Smoothed noise above `threshold` is liquid: mud covers the image, water brightens it.

    mean, deviation, sigma  of the noise and its smoothing
    strength                brightness of water, or the deviation in pixels that softens the rim of mud

    Water follows the published recipe (distance to the rim, equalised, embossed) without OpenCV: the rim is
    the border of the thresholded liquid, where the published code runs a Canny detector on it.
    """
    liquid = smooth(mean + deviation * stream.normal(1, *images.shape[-2:]), sigma)
    wet = liquid >= threshold
    if mud:
        cover = smooth(wet.float(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return images * (1 - cover) + cover * _colour(_MUD_BROWN, images)
    sheen = torch.where(wet, liquid, 0) * _shading(wet)
    sheen = sheen / sheen.amax((2, 3), keepdim=True).clamp(min=1e-12)
    return images + strength * sheen * _colour(_PALE_TURQUOISE, images)


def _colour(rgb: tuple[float, float, float], images: Tensor) -> Tensor:
    colour = images.new_tensor(rgb).view(1, 3, 1, 1)
    return colour if images.shape[1] == 3 else luminance(colour)


def _shading(wet: Tensor) -> Tensor:
    """Light from the upper left on drops (B, 1, H, W): brightness, 0 to 255."""
    dry = F.pad((~wet).float(), [1] * 4, mode="replicate")
    rim = wet & (F.max_pool2d(dry, 3, stride=1) > 0)
    height = _equalised(_box(distance_to(rim)).floor())
    light = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]], device=wet.device)
    embossed = F.conv2d(F.pad(height, [1] * 4, mode="reflect"), light[None, None]).clamp(0, 255)
    return _box(embossed)


def distance_to(marked: Tensor) -> Tensor:
    """Euclidean distance of each pixel to the nearest marked one, (B, 1, H, W), at most 20 pixels.

    Exact, one axis after the other (Felzenszwalb & Huttenlocher 2012).
    """
    far = float(_FARTHEST**2)
    squared = torch.where(marked, 0.0, far)
    for axis in (2, 3):
        size = squared.shape[axis]
        nearest = squared.clone()
        for step in range(1, min(_FARTHEST, size - 1) + 1):
            front, back = squared.narrow(axis, 0, size - step), squared.narrow(axis, step, size - step)
            here = nearest.narrow(axis, step, size - step)
            torch.minimum(here, front + step**2, out=here)
            here = nearest.narrow(axis, 0, size - step)
            torch.minimum(here, back + step**2, out=here)
        squared = nearest
    return squared.sqrt()


def _box(planes: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(planes, [1] * 4, mode="reflect"), 3, stride=1)


def _equalised(levels: Tensor) -> Tensor:
    """Histogram equalisation of whole numbers 0.._FARTHEST to 0..255, image by image."""
    counts = F.one_hot(levels.long().flatten(1), _FARTHEST + 1).sum(1)
    below = counts.cumsum(1)
    least = below.masked_fill(counts == 0, levels[0].numel()).amin(1, keepdim=True)
    table = ((below - least) / (levels[0].numel() - least).clamp(min=1) * 255).round().clamp(min=0)
    return table.gather(1, levels.long().flatten(1)).view_as(levels)
