"""Image folders in the layout of DomainBed: domain/class/image.jpg."""

from __future__ import annotations

import hashlib
import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unseen.errors import InputError, UnseenWarning
from unseen.shifts.coding import some
from unseen.shifts.images import Images, common_size, in_threads, is_grey, reason, upright_size
from unseen.shifts.shift import Shift

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
LAYOUT = "Lay the folder out as domain/class/image.jpg."


class ImageFiles(Images):
    """Images in files, decoded when asked for.

    folder  where the names start
    names   N paths relative to `folder`
    """

    def __init__(self, folder: Path, names: list[str], size: tuple[int, int], channels: int):
        super().__init__(len(names), size, channels)
        self.folder, self.names = folder, names

    def open(self, row: int) -> Image.Image:
        return Image.open(self.folder / self.names[row])

    def name(self, row: int) -> str:
        return str(self.folder / self.names[row])

    def _select(self, rows: list[int]) -> None:
        self.names = [self.names[row] for row in rows]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, sizes and the first and last 4 KiB of each file: copying the folder keeps it."""
        digest = hashlib.sha256(repr((self.size, self.channels)).encode())
        for part in in_threads(_ends, [self.folder / name for name in self.names]):
            digest.update(part)
        digest.update("\0".join(self.names).encode())
        return digest.hexdigest()[:16]

    def content_hashes(self, rows: list[int]) -> list[bytes]:
        """A hash of the bytes of each file."""
        return in_threads(_content_hash, [self.folder / self.names[row] for row in rows])


def open_image_folder(
    folder: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    source: dict[str, Any] | None = None,
) -> Shift:
    """A shift of kind "image" from a folder laid out as domain/class/image.

    Folders inside a class folder belong to the class.

    image_size  side of a square or (height, width) in pixels that every image is scaled to. None: the median
                height and width of the files, scaled down together so that neither exceeds 224
    skip_bad    decode every image now and leave those that cannot be out, with a warning. Otherwise only
                the headers are read here; a file cut off in its middle is found by `check_shift` or `take`

    Files that are not images are ignored with a warning that counts them. Images are grey when all are.
    Raises `InputError` for an empty folder, another layout, or a file that is no image.
    """
    folder = Path(folder)
    names, ignored, empty = _list_files(folder)
    if ignored:
        _warn(folder, f"{len(ignored)} file(s) that are not domain/class/image were ignored: {some(ignored)}")
    if empty:
        _warn(folder, f"{len(empty)} class folder(s) hold no image: {some(empty)}")
    headers = in_threads(_header, [folder / name for name in names])
    bad = {names[i]: header for i, header in enumerate(headers) if isinstance(header, str)}
    if bad and not skip_bad:
        name, why = next(iter(bad.items()))
        raise InputError(
            f"image {str(folder / name)!r}",
            f"cannot be read ({why})" + (f", and so {len(bad) - 1} more" if len(bad) > 1 else ""),
            "Replace or remove it, or open the data with skip_bad=True (--skip-bad) to leave such images out.",
        )
    good = [(name, header) for name, header in zip(names, headers, strict=True) if name not in bad]
    if not good:
        raise InputError(f"folder {str(folder)!r}", "has no image that can be read", "Replace the files.")
    size = common_size([header[:2] for _, header in good], image_size)
    channels = 1 if all(header[2] for _, header in good) else 3
    images = ImageFiles(folder, [name for name, _ in good], size, channels)
    if skip_bad:
        broken = images.find_bad(range(len(images)))
        bad |= {images.names[row]: why for row, why in broken.items()}
        if broken:
            images = images.select(torch.tensor([row for row in range(len(images)) if row not in broken]))
        if bad:
            _warn(folder, f"{len(bad)} image(s) cannot be decoded and were left out: {some(list(bad))}")

    places = [name.split("/") for name in images.names]
    domains, domain = np.unique([place[0] for place in places], return_inverse=True)
    classes, labels = np.unique([place[1] for place in places], return_inverse=True)
    return Shift(
        name=folder.resolve().name,
        kind="image",
        inputs=images,
        labels=torch.from_numpy(labels),
        domain=torch.from_numpy(domain),
        classes=tuple(classes),
        domains=tuple(domains),
        ids=images.names,
        source=source or {},
    )


def _list_files(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Images at domain/class/..., other files that are not hidden, and class folders without an image."""
    names: list[str] = []
    ignored: list[str] = []
    classes: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(place).relative_to(folder)
        if len(inner.parts) == 2:
            classes.add(inner.as_posix())
        for file in sorted(files):
            if file.startswith(".") or file == "Thumbs.db":
                continue
            is_image = file.lower().endswith(IMAGE_ENDINGS) and len(inner.parts) >= 2
            (names if is_image else ignored).append((inner / file).as_posix())
    if not names:
        raise InputError(f"folder {str(folder)!r}", _what_instead(ignored), LAYOUT)
    filled = {"/".join(name.split("/")[:2]) for name in names}
    return sorted(names), ignored, sorted(classes - filled)


def _what_instead(files: list[str]) -> str:
    images = [name for name in files if name.lower().endswith(IMAGE_ENDINGS)]
    if images:
        return f"has images, but none in a class folder inside a domain folder (found {some(images)})"
    return f"holds no images (found {some(files)})" if files else "is empty"


def _header(path: Path) -> tuple[int, int, bool] | str:
    """Height, width and whether the image is grey, from the file's first bytes; or why it cannot be read."""
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        with Image.open(path) as image:
            return *upright_size(image), is_grey(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        return reason(error)


def _ends(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(max(0, size - 4096))
        return hashlib.sha256(str(size).encode() + start + file.read(4096)).digest()


def _content_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _warn(folder: Path, message: str) -> None:
    warnings.warn(f"folder {str(folder)!r}: {message}", UnseenWarning, stacklevel=3)
