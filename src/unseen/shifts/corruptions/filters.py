"""Smoothing, zoom and motion on float images (B, C, H, W): what several corruptions are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_matrix(size: int, sigma: float, *, truncate: float = 4.0, edge: str = "nearest") -> Tensor:
    """(size, size) matrix that smooths a line of `size` pixels by a Gaussian of `sigma` pixels.

    The kernel ends at `truncate` deviations. `edge` says what lies beyond the border, in the words of
    scipy.ndimage: "nearest" (a a | a b c | c c) or "reflect" (b a | a b c | c b).
    """
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2) if radius else torch.ones(1).double()
    positions = torch.arange(size)[:, None] + offsets
    if edge == "nearest":
        positions = positions.clamp(0, size - 1)
    else:
        positions = positions % (2 * size)
        positions = torch.minimum(positions, 2 * size - 1 - positions)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, positions, (weights / weights.sum()).expand(size, -1))
    return matrix.float()


def smooth(images: Tensor, sigma: float, *, truncate: float = 4.0, edge: str = "nearest") -> Tensor:
    """Gaussian blur, one matrix product an axis: measured 1.5 to 4 times faster than convolving on a CPU."""
    rows, columns = (
        gaussian_matrix(size, sigma, truncate=truncate, edge=edge).to(images.device)
        for size in images.shape[-2:]
    )
    return rows @ images @ columns.T


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge about the exact centre by `factor` >= 1, bilinear, and keep the size."""
    batch, channels, height, width = images.shape
    scale = torch.eye(2, 3, device=images.device)[None] / factor
    grid = F.affine_grid(scale, [1, 1, height, width], align_corners=False)
    planes = images.reshape(1, batch * channels, height, width)
    zoomed = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return zoomed.view_as(images)


def motion(images: Tensor, radius: int, sigma: float, angles: Tensor) -> Tensor:
    """Blur along a line: pixel p becomes the mean of p, p + step, p + 2 step, ... with half a Gaussian's weights.

    angles  (B,) degrees, one an image; 0 is along the rows. The line has 2 radius + 1 points, rounded to whole
    pixels; beyond the border the edge repeats. This is what ImageMagick's MotionBlurImage computes, which
    made the published data.
    """
    height, width = images.shape[-2:]
    points = 2 * radius + 1
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(points)]
    total = sum(weights)
    padded = F.pad(images, [points] * 4, mode="replicate")
    blurred = torch.zeros_like(images)
    for image, source, angle in zip(blurred, padded, angles.tolist(), strict=True):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for i, weight in enumerate(weights):
            left, top = points + math.ceil(i * cosine - 0.5), points + math.ceil(i * sine - 0.5)
            image.add_(source[:, top : top + height, left : left + width], alpha=weight / total)
    return blurred


def luminance(images: Tensor) -> Tensor:
    """(B, 1, H, W) grey of colour images (ITU-R BT.601 weights); grey images stay."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)
