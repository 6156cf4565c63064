"""Data of other kinds that a study's models should find unfamiliar: near ones, far ones, held-out classes; and
those on which options of detectors are chosen, which judge nothing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.registry import Spec
from unseen.shifts import Shift, Split
from unseen.shifts.corruptions import CORRUPTIONS, corrupt
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import count_rows, take

Nearness = Literal["near", "far"]
NOISE, SCRAMBLED = "noise", "scrambled"
"""Names of unfamiliar data that are made from the study's own: see `Unfamiliar.open`."""

EXAMPLES = 1000
"""Of unfamiliar data that are made, and at most of those that are opened: drawn evenly."""


@dataclass(frozen=True)
class Unfamiliar:
    """N raw inputs of the study's kind whose classes the models do not know. They judge, and nothing learns from them.

    overlap  how many of them are also among the study's own examples
    source   what opens them again, or None
    """

    name: str
    nearness: Nearness
    inputs: Any
    overlap: int = 0
    source: str | None = None

    def __len__(self) -> int:
        return count_rows(self.inputs)

    @property
    def key(self) -> str:
        """Hash of what is judged."""
        return hashlib.sha256("".join(row_hashes(self.inputs)).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, name: str, nearness: Nearness, inputs: Any, shift: Shift) -> Unfamiliar:
        """Checked against the study's data: a warning tells how many examples are shared.

        Raises `InputError` when there are none, and when some are among the outliers that learners are trained on.
        """
        if count_rows(inputs) == 0:
            raise InputError(f"unfamiliar data {name!r}", "have no examples", "Give at least one.")
        hashes = row_hashes(inputs)
        trained_on = set() if shift.outliers is None else set(row_hashes(shift.outliers))
        if shared := sum(found in trained_on for found in hashes):
            raise InputError(
                f"unfamiliar data {name!r}",
                f"share {shared} of {len(hashes)} examples with the outliers that training sees",
                "Judge on others.",
            )
        own = set(row_hashes(shift.inputs))
        overlap = sum(found in own for found in hashes)
        if overlap:
            warnings.warn(
                f"unfamiliar data {name!r}: {overlap} of {count_rows(inputs)} examples are also among those of "
                f"{shift.name!r}: no detector can tell these apart",
                UnseenWarning,
                stacklevel=2,
            )
        return cls(name, nearness, inputs, overlap)

    @classmethod
    def open(cls, source: str | Shift | Unfamiliar, nearness: Nearness, shift: Shift) -> Unfamiliar:
        """From a `Shift`, or what `open_shift` opens; at most `EXAMPLES` of them.

        "noise" stands for values drawn at random in the range of each of the study's channels or columns,
        "scrambled" for its own examples with their pixels, columns or words in random order, and a corruption of
        images such as "fog(severity=3)" for its own images under it (severity 5, unless said otherwise).
        """
        if isinstance(source, Unfamiliar):
            return source
        if isinstance(source, str) and is_made(source):
            return replace(cls.of(source, nearness, _made(source, shift), shift), source=source)
        other = open_shift(source) if isinstance(source, str) else source
        if other.kind != shift.kind:
            raise InputError(
                f"unfamiliar data {other.name!r}",
                f"are of kind {other.kind!r}, and the models read {shift.kind!r}",
                f"Give data of that kind, or {NOISE!r}.",
            )
        found = cls.of(other.name, nearness, take(other.inputs, _evenly(len(other))), shift)
        return replace(found, source=source if isinstance(source, str) else None)


@dataclass(frozen=True)
class Tuning:
    """Unfamiliar data that choose options of detectors, and judge nothing.

    draws  candidates besides the given options
    """

    data: Unfamiliar
    draws: int = 20

    @property
    def key(self) -> str:
        """Hash of what chooses, and among how many candidates."""
        return f"{self.data.name} {self.data.key} {self.draws}"

    @classmethod
    def open(
        cls, source: str | Shift | Unfamiliar, draws: int, shift: Shift, judging: Sequence[Unfamiliar]
    ) -> Tuning:
        """From what `Unfamiliar.open` takes; `judging` are the data that detectors are judged on.

        Raises `InputError` where an example of theirs, or of the study's own, is among those that choose.
        """
        if draws < 1:
            raise InputError("tuning draws", f"are {draws}", "Give a number from 1, such as 20.")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UnseenWarning
            )  # what they say of shared examples is an error here
            data = Unfamiliar.open(source, "near", shift)
        if not len(data):
            raise InputError(f"tuning data {data.name!r}", "have no examples", "Give at least one.")
        for other in judging:
            if data.source is not None and data.source == other.source:
                raise InputError(
                    f"tuning data {data.name!r}",
                    "are among those that judge",
                    "Tune on others than you judge on.",
                )
        judges = {f"the unfamiliar data {other.name!r}": other.inputs for other in judging}
        if data.source is None or not is_made(data.source):
            judges["the study's own data"] = shift.inputs
        used = set(row_hashes(data.inputs))
        for name, inputs in judges.items():
            if shared := len(used.intersection(row_hashes(inputs))):
                raise InputError(
                    f"tuning data {data.name!r}",
                    f"share {shared} of {len(data)} examples with {name}",
                    "Tune on others: what chose cannot judge.",
                )
        return cls(data, draws)

    def inputs(self, split: Split) -> Any:
        """Raw inputs; what is made of the study's own examples is made of those that are trained on."""
        if self.data.source is None or not is_made(self.data.source):
            return self.data.inputs
        return _made(self.data.source, split.shift.subset(split.train))


def require_apart(used: Mapping[str, Any], judging: Mapping[str, Any]) -> None:
    """Raise `InputError` where raw inputs that judge are, by their hash, among those that were used."""
    seen = {name: set(row_hashes(inputs)) for name, inputs in used.items()}
    for name, inputs in judging.items():
        hashes = row_hashes(inputs)
        for source, known in seen.items():
            if shared := sum(each in known for each in hashes):
                raise InputError(
                    f"test data {name!r}",
                    f"share {shared} of {len(hashes)} examples with {source}",
                    "Judge on others: what chose cannot judge.",
                )


def hold_out_classes(shift: Shift, names: Iterable[str]) -> tuple[Shift, Unfamiliar]:
    """The shift without some of its classes, and their examples as near unfamiliar data.

    Raises `InputError` for unknown classes, and when fewer than two would be left.
    """
    held = tuple(dict.fromkeys(names))
    for name in held:
        if name not in shift.classes:
            raise InputError(f"class {name!r}", "is not a class of the data", nearest(name, shift.classes))
    left = tuple(name for name in shift.classes if name not in held)
    if len(left) < 2:
        raise InputError("held-out classes", f"leave {len(left)} to learn", "Leave two at least.")
    number = torch.tensor([left.index(name) if name in left else -1 for name in shift.classes])
    labels = number[shift.labels]
    known, other = (labels >= 0).nonzero().squeeze(1), (labels < 0).nonzero().squeeze(1)
    kept = shift.subset(known)
    seen = [index for index in range(len(shift.domains)) if bool((kept.domain == index).any())]
    if len(seen) < len(shift.domains):
        raise InputError("held-out classes", "leave a domain without examples", "Hold other classes out.")
    inside = replace(kept, labels=labels[known], classes=left)
    name = f"class {held[0]}" if len(held) == 1 else f"classes {', '.join(held)}"
    return inside, Unfamiliar.of(name, "near", take(shift.inputs, other[_evenly(len(other))]), inside)


def row_hashes(inputs: Any) -> list[str]:
    """A hash of each raw input; equal inputs have equal ones."""
    if isinstance(inputs, pd.DataFrame):
        columns = inputs[sorted(inputs.columns, key=str)].astype(str)
        return [f"{value:016x}" for value in pd.util.hash_pandas_object(columns, index=False)]
    if isinstance(inputs, dict):
        return [
            "".join(parts) for parts in zip(*(row_hashes(value) for value in inputs.values()), strict=True)
        ]
    rows: Any = np.asarray(inputs) if isinstance(inputs, Tensor) else inputs
    found = []
    for row in range(count_rows(rows)):
        one = rows[row] if isinstance(rows, np.ndarray) else take(rows, torch.tensor([row]))
        array = isinstance(one, (Tensor, np.ndarray))
        content = np.ascontiguousarray(one).tobytes() if array else repr(list(one)).encode()
        found.append(hashlib.sha256(content).hexdigest()[:20])
    return found


def _evenly(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, EXAMPLES)).long()


def is_made(source: str) -> bool:
    """Whether it names data that are made of the study's own."""
    return source in (NOISE, SCRAMBLED) or source.partition("(")[0] in CORRUPTIONS


def _made(name: str, shift: Shift) -> Any:
    """Noise, or examples of the study scrambled or corrupted, always the same."""
    generator = torch.Generator().manual_seed(0)
    some = take(shift.inputs, _evenly(len(shift)))
    if name not in (NOISE, SCRAMBLED):
        return _corrupted(name, some, shift.kind)
    if shift.kind == "image" or (shift.kind == "array" and isinstance(some, (Tensor, np.ndarray))):
        values = torch.as_tensor(np.asarray(some))
        if name == SCRAMBLED:
            flat = values.flatten(2) if shift.kind == "image" else values.flatten(1).unsqueeze(1)
            order = torch.rand(len(flat), 1, flat.shape[2], generator=generator).argsort(2)
            return flat.gather(2, order.expand_as(flat)).view(values.shape)
        share = torch.rand(values.shape, generator=generator)
        if shift.kind == "image":
            return (share * 256).to(torch.uint8)
        low, high = values.amin(0), values.amax(0)
        return (low + share.to(values.dtype) * (high - low)).to(values.dtype)
    if name == SCRAMBLED and shift.kind == "text":
        found = []
        for text in some:
            words = str(text).split()
            found.append(" ".join(words[i] for i in torch.randperm(len(words), generator=generator).tolist()))
        return found
    raise InputError(
        f"unfamiliar data {name!r}",
        f"cannot be made of data of kind {shift.kind!r}",
        "Images and arrays have both, texts can be scrambled: give other data by name or path.",
    )


def _corrupted(name: str, some: Any, kind: str) -> Tensor:
    if kind != "image":
        raise InputError(
            f"unfamiliar data {name!r}",
            f"cannot be made of data of kind {kind!r}",
            "Corruptions are of images.",
        )
    spec = Spec.of(name)
    if unknown := spec.options.keys() - {"severity"}:
        raise InputError(
            f"unfamiliar data {name!r}", f"have an unknown option {min(unknown)!r}", "Give severity."
        )
    return corrupt(torch.as_tensor(np.asarray(some)), spec.name, spec.options.get("severity", 5))


def opened(
    near: Sequence[str | Shift | Unfamiliar], far: Sequence[str | Shift | Unfamiliar], shift: Shift
) -> tuple[Unfamiliar, ...]:
    """All of them, near ones first. Raises `InputError` when two have one name."""
    found = [Unfamiliar.open(source, "near", shift) for source in near]
    found += [Unfamiliar.open(source, "far", shift) for source in far]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"unfamiliar data {twice!r}", "are given twice", "Give each once, near or far.")
    return tuple(found)
