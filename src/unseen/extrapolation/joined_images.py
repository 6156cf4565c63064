"""Images from several places as one set: files that stay on disk and arrays in memory, brought to one size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.images import Images


class JoinedImages(Images):
    """The images of several parts, one part after the other.

    parts  `Images`, or uint8 tensors (N, C, H, W) with 1 or 3 channels
    size   (height, width) and `channels` of the result
    """

    def __init__(self, parts: Sequence[Images | Tensor], size: tuple[int, int], channels: int):
        super().__init__(sum(len(part) for part in parts), size, channels)
        self.parts = list(parts)
        self.places = [(p, row) for p, part in enumerate(self.parts) for row in range(len(part))]

    def open(self, row: int) -> Image.Image:
        number, inner = self.places[row]
        part = self.parts[number]
        if isinstance(part, Images):
            return part.open(inner)
        pixels = part[inner].numpy()
        return Image.fromarray(
            pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        )

    def name(self, row: int) -> str:
        number, inner = self.places[row]
        part = self.parts[number]
        return part.name(inner) if isinstance(part, Images) else f"row {inner} of part {number + 1}"

    def _select(self, rows: list[int]) -> None:
        self.places = [self.places[row] for row in rows]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.size, self.channels, self.places)).encode())
        for part in self.parts:
            digest.update(part.fingerprint.encode() if isinstance(part, Images) else part.numpy().tobytes())
        return digest.hexdigest()[:16]


def join_images(first: Any, second: Any) -> Tensor | JoinedImages:
    """Two sets of images, uint8 tensors or `Images`, in the size and channels of the first."""
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape[1:] == second.shape[1:]:
        return torch.cat([first, second])
    parts = []
    for part in (first, second):
        part = part if isinstance(part, Images) else torch.as_tensor(np.asarray(part))
        if isinstance(part, Tensor) and (part.dtype != torch.uint8 or part.shape[1] not in (1, 3)):
            raise InputError(
                f"images of {part.dtype}, shape {tuple(part.shape)}",
                "cannot be joined with images of another form",
                "Give uint8 images with 1 or 3 channels.",
            )
        parts.append(part)
    like = parts[0]
    size, channels = (
        ((int(like.shape[2]), int(like.shape[3])), int(like.shape[1]))
        if isinstance(like, Tensor)
        else (like.size, like.channels)
    )
    return JoinedImages(parts, size, channels)
