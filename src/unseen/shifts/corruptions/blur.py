"""Blurs. Images are float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from unseen.shifts.corruptions.filters import motion, smooth, zoom
from unseen.shifts.corruptions.randomness import RandomStream


def gaussian_blur(images: Tensor, stream: RandomStream, sigma: float) -> Tensor:
    """Smooth by a Gaussian of `sigma` pixels."""
    return smooth(images, sigma)


def defocus_blur(images: Tensor, stream: RandomStream, radius: float, alias: float) -> Tensor:
    """Spread every pixel over a disk, by FFT (at radius 10 five times faster than convolving on a CPU)."""
    kernel = disk_kernel(radius, alias).to(images.device)
    margin = kernel.shape[0] // 2
    padded = F.pad(images, [margin] * 4, mode="reflect")
    # the kernel is symmetric, so convolution and correlation are the same; zeros up to a size that FFTs like
    size = [next_fast_len(length, real=True) for length in padded.shape[-2:]]
    product = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel, s=size)
    height, width = images.shape[-2:]
    return torch.fft.irfft2(product, s=size)[
        ..., 2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width
    ]


def disk_kernel(radius: float, alias: float) -> Tensor:
    """A disk of pixels that sums to one, its rim softened by a small Gaussian of deviation `alias`."""
    soften = 1 if radius <= 8 else 2
    reach = math.floor(radius) + soften
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    taps = torch.exp(-0.5 * (torch.arange(-soften, soften + 1).double() / alias) ** 2)
    gaussian = torch.outer(taps, taps) / taps.sum() ** 2
    return F.conv2d((disk / disk.sum())[None, None], gaussian[None, None], padding=soften)[0, 0].float()


def motion_blur(images: Tensor, stream: RandomStream, radius: int, sigma: float) -> Tensor:
    """Move the camera along a line at a random angle between -45 and 45 degrees."""
    return motion(images, radius, sigma, stream.uniform(low=-45, high=45))


def zoom_blur(images: Tensor, stream: RandomStream, stop: float, step: float) -> Tensor:
    """Mean of the image and of its enlargements by 1, 1 + step, ... below `stop`."""
    return mean_over_zooms(images, stop, step, zoom)


def mean_over_zooms(
    images: Tensor, stop: float, step: float, enlarge: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """Mean of the image and of `enlarge(images, factor)` for each factor in [1, stop) by `step`."""
    factors = np.arange(1, stop, step)  # as published, also where rounding lets one more factor in
    total = images.clone()
    for factor in factors:
        total += enlarge(images, float(factor))
    return total / (len(factors) + 1)
