"""Images with boxes in COCO's format: read strictly, brought to squares, ready for the task of detection."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.shifts.coding import some
from unseen.shifts.image_folders import ImageFiles
from unseen.shifts.images import common_size, in_threads, reason, upright_size

BESIDE = ("_annotations.coco.json", "annotations.json")
"""Names of an annotation file that lies in the folder of its images."""
LAYOUT = (
    "Lay it out as SPLIT/annotations.json beside its images, or annotations/instances_SPLIT.json with the images in "
    "SPLIT/ or images/SPLIT/; one SPLIT is train, another such as test."
)
EDGE = 1.0
"""Pixels by which a box may reach over the edge of its image: rounding, and no mistake."""


@dataclass(frozen=True)
class BoxSplit:
    """N images and the boxes in them.

    images         squares, decoded when asked for
    boxes, labels  for each image (n, 4), left, top, right, bottom in shares of its width and height, and (n,)
    crowd          for each image (n,) bool: a group of objects, which is neither trained on nor counted
    """

    name: str
    images: ImageFiles
    boxes: Sequence[Tensor]
    labels: Sequence[Tensor]
    crowd: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> BoxSplit:
        """The given images only."""
        parts = ([each[row] for row in rows.tolist()] for each in (self.boxes, self.labels, self.crowd))
        return BoxSplit(self.name, self.images.select(rows), *parts)

    @cached_property
    def objects(self) -> Tensor:
        """(N,) number of boxes that count in each image."""
        return torch.tensor([int((~each).sum()) for each in self.crowd])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of images and boxes."""
        digest = hashlib.sha256(self.images.fingerprint.encode())
        for parts in zip(self.boxes, self.labels, self.crowd, strict=True):
            for part in parts:
                digest.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class BoxData:
    """Images to train on and sets to test on; labels are indices into `classes`."""

    name: str
    classes: tuple[str, ...]
    train: BoxSplit
    tests: tuple[BoxSplit, ...]
    kind: ClassVar[str] = "image"

    def __len__(self) -> int:
        return len(self.train) + sum(map(len, self.tests))

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the splits, as a shift's domains."""
        return (self.train.name, *(test.name for test in self.tests))


def holds_boxes(folder: str | Path) -> bool:
    """Whether a folder has annotation files where `open_boxes` looks for them."""
    folder = Path(folder).expanduser()
    return folder.is_dir() and bool(_annotation_files(folder))


def open_boxes(folder: str | Path, *, image_size: int | None = None, skip_bad: bool = False) -> BoxData:
    """A folder of images with boxes in COCO's format.

    `SPLIT/annotations.json` (or `_annotations.coco.json`) lies beside its images, or
    `annotations/instances_SPLIT.json` names images in `SPLIT/`, `images/SPLIT/` or `images/`. The split whose name
    begins with "train" is for training. Every other is a test set of its own, but one that begins with "val" is for
    training, too, where there is another: the arena draws its validation images itself.

    image_size  side in pixels of the squares that images are scaled to (the aspect ratio may change, and boxes with
                it). None: the longer of median height and width, at most 224
    skip_bad    leave bad boxes and images that cannot be read out, with a warning

    Classes are the categories that a training box has; splits agree on them by name. Boxes that reach over an edge
    by a pixel or less are cut. Raises InputError for another layout, a file that is no such JSON, an id that is
    there twice or nowhere, a split without boxes, a test box of a class without training boxes; and, without
    skip_bad, for a box that is not four finite numbers, has no area or lies outside its image, and an image that is
    missing, cannot be read or has not the size that it is said to have.
    """
    folder = Path(folder).expanduser()
    files = _annotation_files(folder)
    train = [name for name in files if name.startswith("train")]
    others = [name for name in files if name not in train]
    if len(train) != 1 or not others:
        problem = f"has the splits {', '.join(files)}" if files else "has no annotation file"
        raise InputError(f"folder {str(folder)!r}", problem, LAYOUT)
    tests = [name for name in others if not name.startswith("val")] or others
    read = {name: _read(folder, files[name], skip_bad) for name in files}
    size = max(common_size([size for each in read.values() for size in each.sizes], image_size))
    trained = [read[name] for name in (*train, *others) if name not in tests]
    classes = sorted({label for each in trained for labels in each.labels for label in labels})
    for name in tests:
        for label in {label for labels in read[name].labels for label in labels}:
            if label not in classes:
                problem = f"has boxes in split {name!r}, but none to train on"
                raise InputError(f"category {label!r}", problem, nearest(label, classes))
    return BoxData(
        folder.resolve().name,
        tuple(classes),
        _split(train[0], folder, trained, classes, size, skip_bad),
        tuple(_split(name, folder, [read[name]], classes, size, skip_bad) for name in tests),
    )


def _annotation_files(folder: Path) -> dict[str, Path]:
    """Annotation file by split."""
    found = {path.parent.name: path for name in BESIDE for path in sorted(folder.glob(f"*/{name}"))}
    for path in sorted(folder.glob("annotations/instances_*.json")):
        found.setdefault(path.stem.removeprefix("instances_"), path)
    found.pop("annotations", None)
    return found


@dataclass
class _Read:
    """What one annotation file says of the images that can be used. Boxes in shares, labels by name."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[list[list[float]]] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    crowd: list[list[bool]] = field(default_factory=list)


def _read(folder: Path, file: Path, skip_bad: bool) -> _Read:
    tables = _load(file)
    categories = _by_id(file, tables["categories"], "category", "name")
    images = _by_id(file, tables["images"], "image", "file_name")
    place = _image_folder(folder, file)
    paths = [place / str(image["file_name"]) for image in images.values()]
    problems = in_threads(_image_problem, paths, images.values())
    found, bad, row = _Read(), {}, {}
    for image, path, problem in zip(images.values(), paths, problems, strict=True):
        if problem:
            bad[f"image {str(path)!r}"] = problem
            continue
        row[image["id"]] = len(found.names)
        found.names.append(path.relative_to(folder).as_posix())
        found.sizes.append((image["height"], image["width"]))
        found.boxes.append([])
        found.labels.append([])
        found.crowd.append([])
    for number, entry in enumerate(tables["annotations"]):
        subject = f"annotation {entry.get('id', f'number {number}')} in {str(file)!r}"
        for name, known in (("image_id", images), ("category_id", categories)):
            if entry.get(name) not in known:
                raise InputError(subject, f"has the {name} {entry.get(name)!r}, which is not in the file")
        if entry["image_id"] not in row:
            continue  # its image is bad
        height, width = found.sizes[row[entry["image_id"]]]
        box = _box(entry.get("bbox"), width, height)
        if isinstance(box, str):
            bad[subject] = box
            continue
        index = row[entry["image_id"]]
        found.boxes[index].append(box)
        found.labels[index].append(str(categories[entry["category_id"]]["name"]))
        found.crowd[index].append(bool(entry.get("iscrowd", 0)))
    if bad and not skip_bad:
        subject, problem = next(iter(bad.items()))
        more = f", and {len(bad) - 1} more in this file" if len(bad) > 1 else ""
        remedy = "Correct it, or leave such boxes and images out with skip_bad=True (--skip-bad)."
        raise InputError(subject, problem + more, remedy)
    if bad:
        told = f"file {str(file)!r}: {len(bad)} bad image(s) and box(es) were left out: {some(list(bad))}"
        warnings.warn(told, UnseenWarning, stacklevel=3)
    if not any(not crowd for each in found.crowd for crowd in each):
        raise InputError(f"file {str(file)!r}", "has no box", "Each split needs images with boxes.")
    return found


def _load(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        tables = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"file {str(file)!r}", f"is no JSON file that can be read ({error})") from None
    for name in ("images", "annotations", "categories"):
        table = tables.get(name) if isinstance(tables, dict) else None
        if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
            problem = f"has no list {name!r} of objects"
            remedy = "COCO's format has images, annotations and categories."
            raise InputError(f"file {str(file)!r}", problem, remedy)
    return tables


def _by_id(file: Path, table: list[dict[str, Any]], what: str, name: str) -> dict[Any, dict[str, Any]]:
    """Entries by id; ids and names must be there, once."""
    for key in ("id", name):
        seen = set()
        for entry in table:
            value = entry.get(key)
            if not isinstance(value, (int, str)) or value in ("", None):
                raise InputError(f"{what} in {str(file)!r}", f"has the {key} {value!r}", "Give each one.")
            if value in seen:
                raise InputError(f"{what} {key} {value!r} in {str(file)!r}", "is there twice", "Rename one.")
            seen.add(value)
    return {entry["id"]: entry for entry in table}


def _image_folder(folder: Path, file: Path) -> Path:
    if file.parent.name != "annotations":
        return file.parent
    split = file.stem.removeprefix("instances_")
    places = [folder / split, folder / "images" / split, folder / "images"]
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"images of split {split!r}", f"are in none of {', '.join(map(str, places))}", LAYOUT)


def _image_problem(path: Path, entry: dict[str, Any]) -> str:
    """Why an image cannot be used, from its header; "" where it can."""
    said = (entry.get("height"), entry.get("width"))
    if not path.is_file():
        return "is not there"
    try:
        with Image.open(path) as image:
            size = upright_size(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        return f"cannot be read ({reason(error)})"
    return "" if size == said else f"is {size[1]} x {size[0]} pixels, but should be {said[1]} x {said[0]}"


def _box(given: Any, width: int, height: int) -> list[float] | str:
    """Left, top, right, bottom in shares of the image; or why COCO's x, y, width, height cannot be used."""
    numbers = given if isinstance(given, list) else []
    if len(numbers) != 4 or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        return f"has the bbox {given!r}, not four finite numbers x, y, width, height"
    x, y, w, h = numbers
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return f"has the bbox {given}, which has no area in its image of {width} x {height} pixels"
    if x < -EDGE or y < -EDGE or x + w > width + EDGE or y + h > height + EDGE:
        return f"has the bbox {given}, which reaches out of its image of {width} x {height} pixels"
    return [left / width, top / height, right / width, bottom / height]


def _split(
    name: str, folder: Path, parts: list[_Read], classes: list[str], side: int, skip_bad: bool
) -> BoxSplit:
    """The parts as one split, with labels as numbers."""
    number = {label: index for index, label in enumerate(classes)}
    images = ImageFiles(folder, [each for part in parts for each in part.names], (side, side), 3)
    split = BoxSplit(
        name,
        images,
        [torch.tensor(each).reshape(-1, 4) for part in parts for each in part.boxes],
        [torch.tensor([number[label] for label in each]).long() for part in parts for each in part.labels],
        [torch.tensor(each, dtype=torch.bool) for part in parts for each in part.crowd],
    )
    broken = images.find_bad(range(len(images))) if skip_bad else {}
    if broken:
        told = f"{len(broken)} image(s) cannot be decoded and were left out"
        names = some([images.names[row] for row in broken])
        warnings.warn(f"folder {str(folder)!r}: {told}: {names}", UnseenWarning, stacklevel=3)
        split = split.select(torch.tensor([row for row in range(len(images)) if row not in broken]))
    return split
