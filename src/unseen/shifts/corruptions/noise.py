"""Noise: each value is disturbed on its own. Images are float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.shifts.corruptions.randomness import RandomStream


def gaussian_noise(images: Tensor, stream: RandomStream, deviation: float) -> Tensor:
    """Add normal noise."""
    return images + deviation * stream.normal(*images.shape[1:])


def shot_noise(images: Tensor, stream: RandomStream, photons: float) -> Tensor:
    """Count photons: Poisson with mean `photons` where an image is white."""
    return stream.poisson(images * photons) / photons


def impulse_noise(images: Tensor, stream: RandomStream, amount: float) -> Tensor:
    """Salt and pepper: a share `amount` of the values (of each channel) becomes 0 or 1 with even chances."""
    u = stream.uniform(*images.shape[1:])
    return torch.where(u < amount, (u < amount / 2).float(), images)


def speckle_noise(images: Tensor, stream: RandomStream, deviation: float) -> Tensor:
    """Noise in proportion to the value."""
    return images + images * deviation * stream.normal(*images.shape[1:])
