"""An image shift with a domain for each corruption and severity: corruption as a dial."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.corruptions.apply import check_severity, corrupt, find
from unseen.shifts.corruptions.catalogue import CORRUPTIONS
from unseen.shifts.shift import Shift, take

STANDARD = tuple(name for name, kind in CORRUPTIONS.items() if not kind.extra)
"""The 15 kinds that benchmarks average over."""


@dataclass(frozen=True, eq=False)
class CorruptedImages:
    """Images that are corrupted when asked for: 76 domains cost no more memory than one.

    images   what holds the clean images: a uint8 tensor (N, C, H, W), an array, or lazily decoded files
    row      (M,) int64, the clean image of each example
    domain   (M,) int64 into `kinds`
    kinds    (kind, severity) of each domain, None for clean
    """

    images: Any
    row: Tensor
    domain: Tensor
    kinds: Sequence[tuple[str, int] | None]
    seed: int

    def __len__(self) -> int:
        return len(self.row)

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of every image."""
        return tuple(torch.as_tensor(take(self.images, self.row[:1])).shape[1:])

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        return self.shape[1:]

    def take(self, rows: Tensor) -> Tensor:
        """uint8 (len(rows), C, H, W); an example looks the same whenever and with whomever it is taken."""
        row, domain = self.row[rows], self.domain[rows]
        images = torch.as_tensor(take(self.images, row)).clone()
        for index in domain.unique().tolist():
            if (kind := self.kinds[index]) is not None:
                chosen = domain == index
                images[chosen] = corrupt(images[chosen], *kind, seed=self.seed, ids=row[chosen])
        return images

    @property
    def fingerprint(self) -> str:
        """Hash of the clean images and of all that is done to them."""
        digest = hashlib.sha256(repr((tuple(self.kinds), self.seed)).encode())
        digest.update(self.row.numpy().tobytes() + self.domain.numpy().tobytes())
        if hasattr(self.images, "fingerprint"):
            digest.update(str(self.images.fingerprint).encode())
        else:
            digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()[:16]


def corruption_shift(
    shift: Shift,
    kinds: str | Iterable[str] = STANDARD,
    severities: int | Iterable[int] = (1, 2, 3, 4, 5),
    *,
    corrupted: float = 0.3,
    seed: int = 0,
) -> Shift:
    """A shift with the domain "clean" and a domain "kind-severity" (such as "fog-3") for each corruption.

    shift       of kind "image", images with 1 or 3 channels of at least 8 x 8 pixels
    kinds       names of `CORRUPTIONS`, by default the 15 standard ones
    severities  from 1 to 5
    corrupted   share of each class's images, in (0, 1), that the corrupted domains show. All of them show the
                same ones, so that their differences are due to the corruption alone; "clean" shows the other
                images, so that no unseen image is a damaged copy of one that was trained on. (To train on one
                corruption and test on another, mind that both show the same images.)
    seed        of the choice of images and of the corruptions

    Images are corrupted when they are taken, each always in the same way. Where the shift has several domains
    and no groups, its domains become the groups. Raises InputError for a shift or choice that does not fit.
    """
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    levels = (severities,) if isinstance(severities, int) else tuple(severities)
    _check(shift, names, levels, corrupted)
    damages = [(name, level) for name in names for level in levels]
    clean, shown = _divide(shift.labels, corrupted, seed)

    row = torch.cat([clean, shown.repeat(len(damages))])
    domain = torch.cat(
        [torch.zeros_like(clean), torch.arange(1, len(damages) + 1).repeat_interleave(len(shown))]
    )
    domains = ("clean", *(f"{name}-{level}" for name, level in damages))
    group, groups = shift.group, shift.groups
    if group is None and len(shift.domains) > 1:
        group, groups = shift.domain, shift.domains
    ids = range(len(shift)) if shift.ids is None else shift.ids
    pairs = list(zip(row.tolist(), domain.tolist(), strict=True))
    result = Shift(
        name=f"{shift.name}-corrupted",
        kind="image",
        inputs=CorruptedImages(shift.inputs, row, domain, (None, *damages), seed),
        labels=shift.labels[row],
        domain=domain,
        classes=shift.classes,
        domains=domains,
        ids=[f"{domains[d]}/{ids[r]}" for r, d in pairs],
        group=None if group is None else group[row],
        groups=groups,
        time=None if shift.time is None else np.asarray(shift.time)[row.numpy()],
        description=f"{shift.description} Damaged by common corruptions (Hendrycks & Dietterich 2019).".strip(),
    )
    corrupt(result.take(torch.tensor([0])), names[0], levels[0])  # images that cannot be corrupted fail now
    return result


def _check(shift: Shift, names: Sequence[str], levels: Sequence[int], corrupted: float) -> None:
    if shift.kind != "image":
        raise InputError(
            f"shift {shift.name!r}", f"is of kind {shift.kind!r}", "Only images can be corrupted."
        )
    for subject, chosen in (("kinds", names), ("severities", levels)):
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(subject, f"are {chosen!r}", "Give at least one, each once.")
    for name in names:
        find(name)
    for level in levels:
        check_severity(level)
    if not 0 < corrupted < 1:
        raise InputError("corrupted", f"is {corrupted}", "Give a share between 0 and 1, such as 0.3.")


def _divide(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the clean and of the corrupted domains; each class with two images or more is in both."""
    generator = torch.Generator().manual_seed(seed)
    clean, shown = [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        shown.append(rows[:count])
        clean.append(rows[count:])
    return torch.cat(clean).sort().values, torch.cat(shown).sort().values
