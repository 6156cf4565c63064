"""Snow, frost and fog. Images are float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.shifts.corruptions.filters import luminance, motion, zoom
from unseen.shifts.corruptions.frost import frost_panes
from unseen.shifts.corruptions.randomness import RandomStream


def snow(
    images: Tensor,
    stream: RandomStream,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Tensor:
    """Whiten the image and let bright specks fall, once as drawn and once turned by 180 degrees.

    mean, deviation, size, threshold  of the noise that makes the specks; radius, sigma  of their motion blur;
    keep  share of the image that is not whitened
    """
    specks = zoom(mean + deviation * stream.normal(1, *images.shape[-2:]), size)
    specks = torch.where(specks < threshold, 0, specks).clamp(0, 1)
    specks = motion(specks, radius, sigma, stream.uniform(low=-135, high=-45))
    whitened = torch.maximum(images, luminance(images) * 1.5 + 0.5)
    return keep * images + (1 - keep) * whitened + specks + specks.rot90(2, (2, 3))


def frost(images: Tensor, stream: RandomStream, keep: float, amount: float) -> Tensor:
    """Lay a random cut of a frosted pane over the image: keep * image + amount * pane.

    The published code uses five photographs of frost, whose licence is unknown; here the panes are drawn by
    `frost_panes`, with the mean colours and contrasts of those photographs. The damage is alike, the
    pictures are not the same.
    """
    height, width = images.shape[-2:]
    panes = frost_panes(max(height, width)).to(images.device)
    if images.shape[1] == 1:
        panes = luminance(panes)
    choice = stream.integers(0, len(panes)).tolist()
    tops = (stream.uniform() * (panes.shape[2] - height)).long().tolist()
    lefts = (stream.uniform() * (panes.shape[3] - width)).long().tolist()
    cuts = [
        panes[pane, :, top : top + height, left : left + width]
        for pane, top, left in zip(choice, tops, lefts, strict=True)
    ]
    return keep * images + amount * torch.stack(cuts)


def fog(images: Tensor, stream: RandomStream, amount: float, decay: float) -> Tensor:
    """Add a plasma fractal times `amount`, then scale back to the brightest value of each image."""
    height, width = images.shape[-2:]
    size = 1 << (max(height, width) - 1).bit_length()
    haze = plasma_fractal(stream.uniform(size, size, low=-1, high=1), decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * haze) * brightest / (brightest + amount)


def plasma_fractal(noise: Tensor, decay: float) -> Tensor:
    """Height maps by the diamond-square algorithm on a torus, each scaled to [0, 1].

    noise  (B, size, size), uniform in [-1, 1): what is added at each point; size is a power of two
    decay  from one scale to the next the addition shrinks by decay squared: the published code multiplies the
           amplitude in twice, and its strengths are tuned to that
    """
    heights = torch.zeros_like(noise)
    step, wobble = noise.shape[-1], 100.0
    while step >= 2:
        half, amplitude = step // 2, wobble**2
        corners = heights[:, ::step, ::step]
        square = corners + corners.roll(-1, 1)
        square = square + square.roll(-1, 2)
        heights[:, half::step, half::step] = square / 4 + amplitude * noise[:, half::step, half::step]
        centres = heights[:, half::step, half::step]
        above = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = above / 4 + amplitude * noise[:, ::step, half::step]
        beside = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = beside / 4 + amplitude * noise[:, half::step, ::step]
        step, wobble = half, wobble / decay
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)
