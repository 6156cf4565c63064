"""Glass blur: pixels change places with near ones, one after the other. Images are float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.shifts.corruptions.filters import smooth
from unseen.shifts.corruptions.randomness import RandomStream


def glass_blur(images: Tensor, stream: RandomStream, sigma: float, reach: int, rounds: int) -> Tensor:
    """Smooth, swap every pixel with a random one at most `reach` away, one after the other, smooth again."""
    return _glass(images, stream, sigma, reach, rounds, published=False)


def glass_blur_published(
    images: Tensor, stream: RandomStream, sigma: float, reach: int, rounds: int
) -> Tensor:
    """As published, which differs in three ways.

    The published swap assigns through views of one NumPy array, so that a pixel is overwritten by its partner
    and the partner stays: pixels are duplicated and lost. Partners lie in [-reach, reach), so that the picture
    drifts to the lower right. And the pixels between are cut (not rounded) to 8 bits.
    """
    return _glass(images, stream, sigma, reach, rounds, published=True)


def _glass(
    images: Tensor, stream: RandomStream, sigma: float, reach: int, rounds: int, *, published: bool
) -> Tensor:
    height, width = images.shape[-2:]
    smoothed = smooth(images, sigma)
    if published:
        smoothed = (smoothed * 255 + 1e-3).floor() / 255
    visited = (height - 2 * reach) * (width - 2 * reach)
    offsets = stream.integers(-reach, reach if published else reach + 1, rounds, visited, 2)
    source = shuffle_pixels(offsets, height, width, reach, duplicate=published).to(images.device)
    shuffled = smoothed.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1))
    return smooth(shuffled.view_as(images), sigma)


def shuffle_pixels(offsets: Tensor, height: int, width: int, reach: int, *, duplicate: bool) -> Tensor:
    """Where each pixel comes from, (B, H W) int64, after the pixels met their partners in turn.

    offsets    (B, rounds, (H - 2 reach)(W - 2 reach), 2) columns and rows to the partner, in visiting order
    duplicate  copy the partner (as published) instead of swapping with it

    Pixels are visited from the lower right to the upper left; each meeting sees the result of the ones before
    it, so this is a plain loop, over Python numbers: measured 30 times faster than over pixels of an array.
    """
    last = 1 if duplicate else 0  # the published partners never lie below or to the right by `reach`
    rows = torch.arange(height - reach - 1 + last, reach - 1 + last, -1)
    columns = torch.arange(width - reach - 1 + last, reach - 1 + last, -1)
    visited = (rows[:, None] * width + columns).flatten()
    order = visited.tolist()
    partners = (visited + offsets[..., 1].cpu() * width + offsets[..., 0].cpu()).tolist()
    sources = []
    for rounds in partners:
        source = list(range(height * width))
        for partner_of in rounds:
            if duplicate:
                for here, there in zip(order, partner_of, strict=True):
                    source[here] = source[there]
            else:
                for here, there in zip(order, partner_of, strict=True):
                    source[here], source[there] = source[there], source[here]
        sources.append(source)
    return torch.tensor(sources)
