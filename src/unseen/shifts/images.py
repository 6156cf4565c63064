"""Images that are decoded when asked for, so that a data set may be larger than memory."""

from __future__ import annotations

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unseen.errors import InputError

MEMORY_LIMIT = 1 << 30
"""Bytes: a set whose decoded pixels need no more than this is decoded once and kept in memory."""
LARGEST_SIDE = 224
"""Pixels: the longer side of images whose size nobody chose (what ImageNet networks take)."""
DECODERS = min(8, os.cpu_count() or 1)


class Images(ABC):
    """N images as uint8 (B, channels, height, width), all of one size, decoded by `take`.

    The whole image is scaled to `size`, as DomainBed does: nothing is cropped, the aspect ratio may change.
    Transparent pixels become white, 16-bit pixels keep their upper 8 bits, EXIF rotation is applied.

    count     N
    size      (height, width) in pixels
    channels  1 (grey) or 3 (RGB)
    """

    def __init__(self, count: int, size: tuple[int, int], channels: int):
        self.count, self.size, self.channels = count, size, channels
        self._pixels: Tensor | None = None
        self._decoded = torch.zeros(count, dtype=torch.bool)

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """The image of one row, as Pillow opens it."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What messages call the image of one row."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the images and of the size they are scaled to."""

    @property
    def kept(self) -> bool:
        """Whether decoded images stay in memory."""
        return self.count * self.channels * self.size[0] * self.size[1] <= MEMORY_LIMIT

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.count} images, channels={self.channels}, size={self.size})"

    def __getstate__(self) -> dict[str, Any]:
        # A worker process decodes for itself: cheaper than sending up to MEMORY_LIMIT bytes to each.
        return {**vars(self), "_pixels": None, "_decoded": torch.zeros(self.count, dtype=torch.bool)}

    def take(self, rows: Tensor) -> Tensor:
        """uint8 (B, channels, height, width) of the given rows, an int64 tensor (B,).

        Raises `InputError` that names the image when one cannot be decoded.
        """
        pixels, bad = self._load(rows)
        for row, why in bad.items():
            raise InputError(
                f"image {self.name(row)!r}",
                why,
                "Replace or remove it, or open the data with skip_bad=True (--skip-bad) to leave such images out.",
            )
        return pixels

    def find_bad(self, rows: Sequence[int]) -> dict[int, str]:
        """Rows that cannot be decoded, each with the reason. Decodes every given row."""
        bad: dict[int, str] = {}
        for chunk in torch.as_tensor(rows, dtype=torch.int64).split(256):
            bad |= self._load(chunk)[1]
        return bad

    def select(self, rows: Tensor) -> Self:
        """The given rows only."""
        chosen = copy.copy(self)
        chosen.__dict__.pop("fingerprint", None)  # a cached property of the larger set
        Images.__init__(chosen, len(rows), self.size, self.channels)
        chosen._select(rows.tolist())
        if self._pixels is not None:
            chosen._pixels, chosen._decoded = self._pixels[rows], self._decoded[rows]
        return chosen

    @abstractmethod
    def _select(self, rows: list[int]) -> None:
        """Keep only the given rows."""

    def resized(self, channels: int, size: tuple[int, int]) -> Self:
        """The same images with other channels and another (height, width): what a trained model expects."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        Images.__init__(other, self.count, size, channels)
        return other

    def content_hashes(self, rows: list[int]) -> list[bytes]:
        """A hash of each image's content: equal for exact copies."""
        pixels = (self.take(torch.tensor([row])).numpy().tobytes() for row in rows)
        return [hashlib.blake2b(p, digest_size=16).digest() for p in pixels]

    def _load(self, rows: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Pixels, from memory where they are kept, and the rows that cannot be decoded, with the reason."""
        if not self.kept:
            return self._decode(rows)
        if self._pixels is None:
            self._pixels = torch.empty(self.count, self.channels, *self.size, dtype=torch.uint8)
        new = rows[~self._decoded[rows]].unique()
        bad: dict[int, str] = {}
        if len(new):
            self._pixels[new], bad = self._decode(new)
            self._decoded[new] = True
            self._decoded[list(bad)] = False
        return self._pixels[rows], bad

    def _decode(self, rows: Tensor) -> tuple[Tensor, dict[int, str]]:
        out = np.zeros((len(rows), self.channels, *self.size), dtype=np.uint8)
        bad: dict[int, str] = {}

        def fill(place: int, row: int) -> None:
            try:
                out[place] = to_pixels(self.open(row), self.size, self.channels)
            except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
                bad[row] = f"cannot be decoded ({reason(error)})"

        in_threads(fill, range(len(rows)), rows.tolist())
        return torch.from_numpy(out), dict(sorted(bad.items()))


def in_threads(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """`list(map(function, *arguments))` in a few threads; reading and decoding release Python's lock."""
    with ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(function, *arguments))


def reason(error: Exception) -> str:
    """Why Pillow refused a file, in words without the path (the message names the image already)."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow knows"
    return str(error) or type(error).__name__


def to_pixels(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """A Pillow image as uint8 (channels, height, width) of the given (height, width)."""
    mode = "L" if channels == 1 else "RGB"
    if image.format == "JPEG":
        image.draft(mode, (max(size), max(size)))  # decode a large photograph at 1/2, 1/4 or 1/8, no smaller
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow clips 16-bit values at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel (with or without transparency)."""
    return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the rotation that the EXIF data ask for."""
    width, height = image.size
    if image.format == "PNG":  # Pillow would decode the whole file for data that few PNGs have
        return height, width
    turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 lie on their side
    return (width, height) if turned else (height, width)


def common_size(sizes: list[tuple[int, int]], wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) that all images get.

    wanted  a side of a square, (height, width), or None: the median height and the median width, both
            scaled down by the same factor where the longer exceeds `LARGEST_SIDE`
    """
    if wanted is None:
        height, width = np.median(np.asarray(sizes), axis=0)
        scale = min(1.0, LARGEST_SIDE / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
    both = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise InputError("image_size", f"is {wanted!r}", "Give a side in pixels, or (height, width).")
    return both
