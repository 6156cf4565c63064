"""What cameras and codecs do to an image. Images are float (B, C, H, W) in [0, 1].

Brightness and saturation are HSV operations whose hue stays, so they need no hue: three lines each.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.corruptions.filters import smooth
from unseen.shifts.corruptions.randomness import RandomStream


def brightness(images: Tensor, stream: RandomStream, offset: float) -> Tensor:
    """Raise V of HSV by `offset`."""
    value = images.amax(1, keepdim=True)
    raised = (value + offset).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised)


def contrast(images: Tensor, stream: RandomStream, factor: float) -> Tensor:
    """Shrink the distance to the mean of each channel of each image."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def saturate(images: Tensor, stream: RandomStream, factor: float, offset: float) -> Tensor:
    """S of HSV times `factor` plus `offset`; a grey pixel, which has no hue, stays grey.

    Raises InputError for images of one channel.
    """
    return change_saturation(images, factor, offset)


def change_saturation(images: Tensor, factor: float, offset: float) -> Tensor:
    if images.shape[1] != 3:
        raise InputError(
            "images",
            "have one channel, which has no saturation to change",
            "Give colour images, or leave it out.",
        )
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    saturation = chroma / value.clamp(min=1e-12)
    ratio = (saturation * factor + offset).clamp(0, 1) / saturation.clamp(min=1e-12)
    return torch.where(chroma > 0, value - (value - images) * ratio, images)


def pixelate(images: Tensor, stream: RandomStream, scale: float) -> Tensor:
    """Shrink to `scale` and enlarge again, both with a box filter (Pillow's BOX, without its rounding)."""
    height, width = images.shape[-2:]
    down = [box_matrix(size, int(size * scale)).to(images.device) for size in (height, width)]
    up = [box_matrix(int(size * scale), size).argmax(1).to(images.device) for size in (height, width)]
    small = down[0] @ images @ down[1].T
    return small.index_select(2, up[0]).index_select(3, up[1])  # enlarging copies the nearest pixel


def box_matrix(size: int, new: int) -> Tensor:
    """(new, size) matrix that resizes a line: each new pixel is the mean of the pixels whose centres it covers."""
    ratio = size / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * ratio
    distance = (torch.arange(size) + 0.5 - centres[:, None]) / max(ratio, 1.0)
    covered = ((distance > -0.5) & (distance <= 0.5)).float()
    return covered / covered.sum(1, keepdim=True)


def jpeg_compression(images: Tensor, stream: RandomStream, quality: int) -> Tensor:
    """Through the real codec (Pillow), image by image on the CPU; float images are rounded to 8 bits first."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=quality
        )
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).to(images.device).permute(0, 3, 1, 2).float() / 255


def elastic_transform(
    images: Tensor, stream: RandomStream, strength: float, sigma: float, affine: float
) -> Tensor:
    """Move three points at random (an affine map), then every pixel along a smooth random field.

    strength, sigma, affine  in units of the shorter side: size and smoothness of the field, reach of the points

    Both maps are joined, so the image is interpolated once (bilinear, mirrored at the border); the published
    code interpolates twice.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float32)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (side // 3)
    points = (centre + corners).to(images.device)
    moved = points + stream.uniform(3, 2, low=-affine * side, high=affine * side)

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([x, y]).float().to(images.device).expand(len(images), -1, -1, -1)
    field = stream.uniform(2, height, width, low=-1, high=1)
    if strength:
        position = position + smooth(field, sigma * side, truncate=3, edge="reflect") * (strength * side)

    # the map that takes the moved points back: (x', y') = (x, y, 1) @ back
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), points.expand(len(images), -1, -1))
    source = F.pad(position.permute(0, 2, 3, 1).flatten(1, 2), (0, 1), value=1.0) @ back
    grid = source.view(-1, height, width, 2) * 2 / (source.new_tensor([width, height]) - 1) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
