"""Streams: the order in which examples arrive after deployment, which decides what adaptation can and cannot do.

    stream = ordered(corruption_drift(split, ["fog", "jpeg_compression"], severities=(1, 3, 5, 3, 1)))
    stream = hold_out_classes(correlated(split, concentration=0.1, batch_size=1), ["7"], until=0.5)

A source is a `Split`, whose unseen rows arrive, or a `Shift`, all of whose rows do. A batch size of one is a stream
of single examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.shifts.corruptions.apply import check_severity, find
from unseen.shifts.corruptions.shift import CorruptedImages
from unseen.shifts.shift import Shift, Split


@dataclass(frozen=True)
class Stream:
    """Rows of a shift in their order of arrival.

    rows        (T,) int64
    batch_size  examples that arrive together, from 1
    arrival     what the order is, for tables: "ordered", "gradual", "correlated", "mixed", "time"
    """

    shift: Shift
    rows: Tensor
    batch_size: int
    arrival: str

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError("batch_size", f"is {self.batch_size!r}", "Give a whole number from 1.")
        if not len(self.rows):
            raise InputError("stream", "has no example", "Name domains that have some.")
        if int(self.rows.min()) < 0 or int(self.rows.max()) >= len(self.shift):
            raise InputError(
                "rows of the stream", "are no rows of the data", f"Give 0 to {len(self.shift) - 1}."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> list[Tensor]:
        """Rows of each batch. A single example that would be left over joins the batch before."""
        parts = list(self.rows.split(self.batch_size))
        if self.batch_size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    @property
    def labels(self) -> Tensor:
        """(T,) int64, for judging only."""
        return self.shift.labels[self.rows]

    @property
    def domain(self) -> Tensor:
        """(T,) int64 into `shift.domains`."""
        return self.shift.domain[self.rows]


def ordered(
    source: Shift | Split,
    order: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    blend: float = 0.0,
    seed: int = 0,
) -> Stream:
    """Domains one after the other, their examples in random order.

    order  names of the domains, each once; by default all that have examples, as the shift names them
    blend  0 changes abruptly. Otherwise neighbours mix: the share of the next domain rises linearly over `blend`
           times the length of a domain, in (0, 1]
    """
    shift, domains, positions = _stretches(source, order)
    if not 0 <= blend <= 1:
        raise InputError("blend", f"is {blend}", "Give 0 (abrupt) to 1 (nothing but transitions).")
    generator = torch.Generator().manual_seed(seed)
    # uniform within a stretch, moved by another uniform number: a density with linear flanks
    times = [
        stretch
        + torch.rand(len(rows), generator=generator)
        + blend * (torch.rand(len(rows), generator=generator) - 0.5)
        for stretch, rows in enumerate(positions)
    ]
    rows = torch.cat(positions)[torch.cat(times).argsort()]
    return Stream(shift, rows, batch_size, "gradual" if blend and len(domains) > 1 else "ordered")


def mixed(
    source: Shift | Split, order: Sequence[str] | None = None, *, batch_size: int = 64, seed: int = 0
) -> Stream:
    """Examples of all domains (or of those named) in random order: every batch has some of each."""
    shift, _, positions = _stretches(source, order)
    rows = torch.cat(positions)
    generator = torch.Generator().manual_seed(seed)
    return Stream(shift, rows[torch.randperm(len(rows), generator=generator)], batch_size, "mixed")


def correlated(
    source: Shift | Split,
    order: Sequence[str] | None = None,
    *,
    concentration: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
) -> Stream:
    """Domains one after the other, and within each labels come in runs.

    Each class spreads its examples over as many slots as there are classes by shares from a Dirichlet distribution
    with this concentration; the slots follow each other, the classes of a slot one by one (Gong et al. 2022, arXiv
    2208.05117). Towards 0 each class is one run; large numbers leave short runs.
    """
    shift, _, positions = _stretches(source, order)
    if not concentration > 0:
        raise InputError("concentration", f"is {concentration}", "Give a positive number, such as 0.1.")
    generator = np.random.default_rng(seed)
    slots, parts = len(shift.classes), []
    for rows in positions:
        runs: list[tuple[int, float, Tensor]] = []
        for label in shift.labels[rows].unique().tolist():
            own = rows[shift.labels[rows] == label]
            own = own[torch.from_numpy(generator.permutation(len(own)))]
            shares = generator.dirichlet(np.full(slots, concentration))
            ends = np.round(np.cumsum(shares) * len(own)).astype(int)[:-1]
            runs += [
                (slot, generator.random(), run)
                for slot, run in enumerate(own.tensor_split(torch.from_numpy(ends)))
            ]
        runs.sort(key=lambda run: run[:2])  # slot after slot, classes of a slot at random
        parts += [run for _, _, run in runs]
    return Stream(shift, torch.cat(parts), batch_size, "correlated")


def by_time(source: Shift | Split, *, batch_size: int = 64) -> Stream:
    """Examples in the order of the shift's time; those of one moment as the shift has them."""
    shift, rows = _pool(source)
    order = np.argsort(_times(shift)[rows.numpy()], kind="stable")
    return recorded(shift, rows[torch.from_numpy(order)], batch_size=batch_size)


def recorded(shift: Shift, rows: Tensor | Sequence[int], *, batch_size: int = 64) -> Stream:
    """Given rows in the given order, which must be that of the shift's time.

    Raises InputError where an example comes before an earlier one: adaptation would have learnt from the future.
    """
    rows = torch.as_tensor(rows, dtype=torch.int64)
    stream = Stream(shift, rows, batch_size, "time")
    times = _times(shift)[rows.numpy()]
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        first = int(back[0])
        raise InputError(
            "stream",
            f"is out of time order: example {first + 1} is of {times[first + 1]}, after one of {times[first]}",
            "Use by_time, which sorts.",
        )
    return stream


def hold_out_classes(stream: Stream, classes: str | Iterable[str], *, until: float = 1.0) -> Stream:
    """The stream without examples of some classes in its first part, so that they are new when they come.

    until  share of the stream, in (0, 1]; 1 keeps the classes out for good
    """
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    for name in names:
        if name not in stream.shift.classes:
            raise InputError(
                f"class {name!r}", "is not a class of the data", nearest(name, stream.shift.classes)
            )
    if not 0 < until <= 1:
        raise InputError("until", f"is {until}", "Give a share of the stream in (0, 1], such as 0.5.")
    absent = torch.isin(stream.labels, torch.tensor([stream.shift.classes.index(n) for n in names]))
    early = torch.arange(len(stream)) < until * len(stream)
    return replace(stream, rows=stream.rows[~(absent & early)])


def corruption_drift(
    source: Shift | Split,
    kinds: str | Iterable[str],
    severities: int | Iterable[int] = (1, 2, 3, 4, 5, 4, 3, 2, 1),
    *,
    seed: int = 0,
) -> Shift:
    """A shift whose domains are stations of a drift, in order: each kind of corruption with each severity in turn.

    source      images; each appears once, at one station, dealt out at random and class by class
    kinds       names of `unseen.shifts.corruptions.CORRUPTIONS`
    severities  0 (clean) to 5 for each kind; repeated ones are stations of their own ("fog-1", then "fog-1 (2)")
    Give it to `ordered`, `correlated` or `mixed`. Raises InputError for what does not fit.
    """
    shift, rows = _pool(source)
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    levels = (severities,) if isinstance(severities, int) else tuple(severities)
    if shift.kind != "image":
        raise InputError(
            f"shift {shift.name!r}", f"is of kind {shift.kind!r}", "Only images can be corrupted."
        )
    for name in names:
        find(name)
    for level in levels:
        if level != 0:
            check_severity(level)
    stations = [(name, level) for name in names for level in levels]
    if not stations or len(stations) > len(rows):
        raise InputError(
            "kinds and severities",
            f"are {len(stations)} stations for {len(rows)} images",
            "Give at least one of each, and no more stations than images.",
        )
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    rows = rows[shift.labels[rows].argsort(stable=True)]
    station = torch.arange(len(rows)) % len(stations)
    damage = [(name, level) if level else None for name, level in stations]
    domains: list[str] = []
    for name, level in stations:
        title, again = f"{name}-{level}", 2
        while title in domains:
            title, again = f"{name}-{level} ({again})", again + 1
        domains.append(title)
    ids = range(len(shift)) if shift.ids is None else shift.ids
    return Shift(
        name=f"{shift.name}-drift",
        kind="image",
        inputs=CorruptedImages(shift.inputs, rows, station, damage, seed),
        labels=shift.labels[rows],
        domain=station,
        classes=shift.classes,
        domains=tuple(domains),
        ids=[f"{domains[s]}/{ids[r]}" for r, s in zip(rows.tolist(), station.tolist(), strict=True)],
        description=f"{shift.description} Corrupted more and less on the way.".strip(),
    )


def _pool(source: Shift | Split) -> tuple[Shift, Tensor]:
    if isinstance(source, Split):
        if not len(source.unseen):
            raise InputError("split", "holds nothing out, so nothing arrives", "Give split(unseen=...).")
        return source.shift, source.unseen
    return source, torch.arange(len(source))


def _stretches(
    source: Shift | Split, order: Sequence[str] | None
) -> tuple[Shift, tuple[str, ...], list[Tensor]]:
    """The shift, names of domains in order of arrival, and their rows."""
    shift, rows = _pool(source)
    present = [shift.domains[i] for i in shift.domain[rows].unique().tolist()]
    domains = tuple(present if order is None else order)
    for name in domains:
        if name not in present:
            raise InputError(f"domain {name!r}", "has no example that could arrive", nearest(name, present))
    if not domains or len(set(domains)) < len(domains):
        raise InputError("order", f"is {domains}", f"Name different ones of {', '.join(present)}.")
    return shift, domains, [rows[shift.domain[rows] == shift.domains.index(name)] for name in domains]


def _times(shift: Shift) -> np.ndarray:
    if shift.time is None:
        raise InputError(f"shift {shift.name!r}", "has no time", "Name a time column when you open the data.")
    return np.asarray(shift.time)
