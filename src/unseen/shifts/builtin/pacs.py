"""PACS, the usual benchmark of domain generalization for images, from a data folder."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import Spec, shifts
from unseen.shifts.builtin.data_folder import data_file
from unseen.shifts.shift import Shift

FILE = "pacs_64.parquet"
COLUMNS = ("jpeg", "domain", "class")


@shifts.register(
    "pacs",
    summary="Seven things in paintings, cartoons, photographs and sketches (needs pacs_64.parquet)",
    paper="Li et al. 2017, Deeper, broader and artier domain generalization",
)
def pacs(size: int | None = None, seed: int = 0, path: str | None = None) -> Shift:
    """PACS at 64x64 pixels, uint8 (N, 3, 64, 64): dog, elephant, giraffe, guitar, horse, house, person.

    size  images per domain at most, in the proportions of its classes; None takes all 9,991
    seed  of the choice of images
    path  pacs_64.parquet (columns jpeg, domain, class) or its folder; default: the folder in $UNSEEN_DATA

    Sketches are 39 % of all images, and class proportions differ by domain. The licence of the images is
    unclear, so the library does not bring them. Raises InputError when the file is missing or another one.
    """
    file = data_file(FILE, path)
    frame = pd.read_parquet(file)
    if missing := [column for column in COLUMNS if column not in frame]:
        raise InputError(f"data file {str(file)!r}", f"has no column {missing[0]!r}", f"Give a {FILE}.")
    labels, classes = pd.factorize(frame["class"], sort=True)
    domain, domains = pd.factorize(frame["domain"], sort=True)
    rows = torch.arange(len(frame))
    if size is not None:
        rows = _thinned(torch.from_numpy(labels), torch.from_numpy(domain), size, seed)
    chosen = rows.numpy()
    return Shift(
        name="pacs",
        kind="image",
        inputs=torch.stack([_decoded(jpeg) for jpeg in frame["jpeg"].iloc[chosen]]),
        labels=labels[chosen],
        domain=domain[chosen],
        classes=tuple(classes),
        domains=tuple(domains),
        ids=frame["source"].iloc[chosen].tolist() if "source" in frame else chosen.tolist(),
        description="PACS: seven classes in paintings, cartoons, photographs and sketches.",
        source={"source": str(Spec.make("pacs", size=size, seed=seed, path=path))},
    )


def _thinned(labels: Tensor, domain: Tensor, size: int, seed: int) -> Tensor:
    """At most `size` rows of each domain; each class keeps its share, rounded down, or one image."""
    classes = int(labels.max()) + 1
    if size < classes:
        raise InputError("size", f"is {size}", f"Give at least {classes}: one image of each class.")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = []
    for index in domain.unique().tolist():
        rows = shuffled[domain[shuffled] == index]
        for label in labels[rows].unique().tolist():
            of_class = rows[labels[rows] == label]
            kept.append(of_class[: max(1, size * len(of_class) // len(rows))])
    return torch.cat(kept).sort().values


def _decoded(jpeg: bytes) -> Tensor:
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))).permute(2, 0, 1)
