"""A shift: examples from several domains and a task; a split says which domains are unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.shifts.sampling import derive_seed

Kind = Literal["array", "image", "table", "text", "graph", "multimodal"]


def take(inputs: Any, rows: Tensor) -> Any:
    """Rows of raw inputs: a tensor, array, data frame, list, dict of these, or anything with `take(rows)`."""
    if isinstance(inputs, Tensor):
        return inputs.index_select(0, rows)  # half the time of inputs[rows] for wide rows
    if isinstance(inputs, np.ndarray):
        return inputs[rows.numpy()]
    if isinstance(inputs, pd.DataFrame):
        return inputs.iloc[rows.numpy()]
    if isinstance(inputs, dict):
        return {key: take(value, rows) for key, value in inputs.items()}
    if is_lazy(inputs):
        return inputs.take(rows)
    return [inputs[row] for row in rows.tolist()]


def is_lazy(inputs: Any) -> bool:
    """Whether inputs are read when asked for (image files): they have `take(rows)` and `select(rows)`."""
    return not isinstance(inputs, (Tensor, np.ndarray, pd.DataFrame)) and hasattr(inputs, "take")


@dataclass
class Shift:
    """N labelled examples from several domains.

    inputs   N raw inputs. kind "array": float (N, ...); "image": uint8 (N, channels, height, width) or
             lazily decoded image files; "table": a data frame; "text": a list of strings; "graph": a dict
             of padded tensors
    labels   (N,) int64 into `classes`
    domain   (N,) int64 into `domains`
    ids      N stable names of the examples (file names, row numbers)
    group    (N,) int64 into `groups`, or None: a further attribute for worst-group metrics
    weight   (N,) float from 0, or None: what each example counts in training, such as an importance weight
    time     (N,) sortable values, or None: lets a split train on earlier and test on later examples
    outliers further raw inputs of the same form that are of no class, or None: training may learn to be uncertain
             of them (outlier exposure); they have no domain and judge nothing
    """

    name: str
    kind: Kind
    inputs: Any
    labels: Tensor
    domain: Tensor
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    ids: Sequence[Any] | None = None
    group: Tensor | None = None
    groups: tuple[str, ...] = ()
    weight: Tensor | None = None
    time: np.ndarray | None = None
    outliers: Any = None
    description: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    """How to open this shift again (for the report and the model card)."""

    def __post_init__(self) -> None:
        self.labels = torch.as_tensor(np.asarray(self.labels), dtype=torch.int64)
        self.domain = torch.as_tensor(np.asarray(self.domain), dtype=torch.int64)
        self.classes = tuple(map(str, self.classes))
        self.domains = tuple(map(str, self.domains))
        if self.group is not None:
            self.group = torch.as_tensor(np.asarray(self.group), dtype=torch.int64)
        if self.weight is not None:
            self.weight = torch.from_numpy(np.asarray(self.weight).astype(np.float32))
            if not bool(torch.isfinite(self.weight).all()) or bool((self.weight < 0).any()):
                raise InputError(
                    f"shift {self.name!r}", "has weights below 0 or missing", "Give finite numbers from 0."
                )
        count = len(self.labels)
        sizes = {"inputs": count_rows(self.inputs), "domain": len(self.domain)}
        for name in ("group", "weight", "time", "ids"):
            if getattr(self, name) is not None:
                sizes[name] = len(getattr(self, name))
        for name, size in sizes.items():
            if size != count:
                raise InputError(
                    f"shift {self.name!r}",
                    f"has {count} labels but {size} rows in {name!r}",
                    "Give one row of each for every example.",
                )
        if count == 0:
            raise InputError(f"shift {self.name!r}", "has no examples", "Give at least two of each class.")
        for name, values, names in (
            ("label", self.labels, self.classes),
            ("domain", self.domain, self.domains),
            ("group", self.group, self.groups),
        ):
            if values is not None and (int(values.min()) < 0 or int(values.max()) >= len(names)):
                raise InputError(
                    f"shift {self.name!r}",
                    f"has {name} numbers from {int(values.min())} to {int(values.max())}, but "
                    f"{len(names)} {name} names",
                    f"Number them from 0 to {len(names) - 1}.",
                )

        if self.outliers is not None:
            self._check_outliers()

    def _check_outliers(self) -> None:
        if count_rows(self.outliers) == 0:
            raise InputError("outliers", "are none", "Give at least one, or leave them out.")
        if self.kind not in ("array", "image") or is_lazy(self.inputs) or is_lazy(self.outliers):
            return
        own, found = tuple(self.inputs.shape[1:]), tuple(self.outliers.shape[1:])
        if own != found:
            raise InputError(
                "outliers", f"have examples of shape {found}", f"Give the shape {own} of the data."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"Shift({self.name!r}, {self.kind}, {len(self)} examples, {len(self.classes)} classes, "
            f"domains: {', '.join(self.domains)})"
        )

    def take(self, rows: Tensor) -> Any:
        """Raw inputs of the given rows."""
        return take(self.inputs, rows)

    def subset(self, rows: Tensor) -> Shift:
        """The same shift with fewer examples; class and domain names stay."""
        numpy_rows = rows.numpy()
        return replace(
            self,
            inputs=self.inputs.select(rows) if is_lazy(self.inputs) else self.take(rows),
            labels=self.labels[rows],
            domain=self.domain[rows],
            ids=None if self.ids is None else [self.ids[row] for row in rows.tolist()],
            group=None if self.group is None else self.group[rows],
            weight=None if self.weight is None else self.weight[rows],
            time=None if self.time is None else np.asarray(self.time)[numpy_rows],
        )

    def with_outliers(self, outliers: Any) -> Shift:
        """The same shift with known outliers: raw inputs in the form of its own, of no class.

        Raises `InputError` for none at all, or of another shape.
        """
        return replace(self, outliers=outliers)

    def counts(self) -> pd.DataFrame:
        """Examples per domain (rows) and class (columns)."""
        table = torch.zeros(len(self.domains), len(self.classes), dtype=torch.int64)
        table.index_put_(
            (self.domain, self.labels), torch.ones(len(self), dtype=torch.int64), accumulate=True
        )
        return pd.DataFrame(table.numpy(), index=list(self.domains), columns=list(self.classes))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, labels, domains and inputs: the key under which results and features are kept."""
        digest = hashlib.sha256(repr((self.kind, self.classes, self.domains)).encode())
        digest.update(self.labels.numpy().tobytes() + self.domain.numpy().tobytes())
        for part in (self.group, self.time):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        if self.weight is not None:
            digest.update(b"weight" + self.weight.numpy().tobytes())
        if self.outliers is not None:
            digest.update(b"outliers")
            _digest(self.outliers, digest)
        _digest(self.inputs, digest)
        return digest.hexdigest()[:16]

    def split(
        self,
        unseen: str | Iterable[str] | None = None,
        *,
        after: Any = None,
        validation: float = 0.2,
        unlabelled: float | Tensor | Sequence[int] | None = None,
        seed: int = 0,
    ) -> Split:
        """Say which examples are for training, for in-distribution (ID) validation, and unseen (OOD).

        unseen      name or names of the held-out domains; None holds no domain out
        after       hold out every example with `time > after` (of the unseen domains' and the others alike)
        validation  fraction of each training domain kept for ID validation, in (0, 1)
        unlabelled  examples whose inputs training may see and whose labels nobody reads: a fraction in (0, 1) of
                    each unseen domain's, kept apart from those that judge; or any rows (int64), which then have
                    no other role
        seed        of the draws of validation and of unlabelled examples
        """
        held_out = (unseen,) if isinstance(unseen, str) else tuple(unseen or ())
        for name in held_out:
            if name not in self.domains:
                raise InputError(
                    f"unseen domain {name!r}", "is not a domain of the data", nearest(name, self.domains)
                )
        if not 0 < validation < 1:
            raise InputError(
                "validation", f"is {validation}", "Give a fraction between 0 and 1, such as 0.2."
            )
        is_unseen = torch.isin(
            self.domain, torch.tensor([self.domains.index(n) for n in held_out], dtype=torch.int64)
        )
        if after is not None:
            if self.time is None:
                raise InputError("after", "was given, but the shift has no time", "Name a time column.")
            is_unseen |= torch.from_numpy(_later(np.asarray(self.time), after))
        no_labels = self._unlabelled_rows(unlabelled, is_unseen, seed)
        has_labels = torch.ones(len(self), dtype=torch.bool)
        has_labels[no_labels] = False
        is_unseen, is_seen = is_unseen & has_labels, ~is_unseen & has_labels
        train_domains = tuple(
            name for i, name in enumerate(self.domains) if bool(((self.domain == i) & is_seen).any())
        )
        if not train_domains:
            raise InputError(
                f"shift {self.name!r}",
                f"has no domain left to train on when {', '.join(held_out) or 'later examples'} is held out",
                "Learning to generalize needs at least one domain for training and another that is unseen.",
            )
        generator = torch.Generator().manual_seed(seed)
        train, held = [], []
        for name in train_domains:
            rows = ((self.domain == self.domains.index(name)) & is_seen).nonzero().squeeze(1)
            rows = rows[torch.randperm(len(rows), generator=generator)]
            count = min(max(1, round(validation * len(rows))), len(rows) - 1)
            if count < 1:
                raise InputError(
                    f"domain {name!r}",
                    f"has {len(rows)} example(s)",
                    "A training domain needs at least two: one to train on, one to validate.",
                )
            held.append(rows[:count].sort().values)
            train.append(rows[count:].sort().values)
        split = Split(
            shift=self,
            train=torch.cat(train),
            validation=torch.cat(held),
            unseen=is_unseen.nonzero().squeeze(1),
            train_domains=train_domains,
            unseen_domains=tuple(self.domains[i] for i in self.domain[is_unseen].unique().tolist()),
            seed=seed,
            unlabelled=no_labels,
        )
        split.require_every_class()
        return split

    def _unlabelled_rows(
        self, unlabelled: float | Tensor | Sequence[int] | None, is_unseen: Tensor, seed: int
    ) -> Tensor:
        """Rows whose labels nobody reads, in ascending order: the given ones, or a share of the unseen ones."""
        if unlabelled is None:
            return torch.zeros(0, dtype=torch.int64)
        if not isinstance(unlabelled, (int, float)):
            rows = torch.as_tensor(unlabelled, dtype=torch.int64).reshape(-1).unique()
            if not len(rows) or int(rows[0]) < 0 or int(rows[-1]) >= len(self):
                raise InputError(
                    "unlabelled",
                    "are no rows of the data",
                    f"Give rows from 0 to {len(self) - 1}, or a fraction.",
                )
            return rows
        if not 0 < unlabelled < 1:
            raise InputError(
                "unlabelled", f"is {unlabelled}", "Give a fraction between 0 and 1, such as 0.5, or rows."
            )
        if not is_unseen.any():
            raise InputError(
                "unlabelled",
                f"is {unlabelled} of the unseen examples, of which there are none",
                "Name an unseen domain, or give the rows themselves.",
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, 2))
        parts = []
        for index in self.domain[is_unseen].unique().tolist():
            rows = ((self.domain == index) & is_unseen).nonzero().squeeze(1)
            count = min(max(1, round(unlabelled * len(rows))), len(rows) - 1)
            if count < 1:
                raise InputError(
                    f"domain {self.domains[index]!r}",
                    f"has {len(rows)} unseen example(s)",
                    "With unlabelled examples it needs at least two: one without a label, one to judge.",
                )
            parts.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
        return torch.cat(parts).sort().values


@dataclass(frozen=True)
class Split:
    """Rows of a shift by role. `train` and `validation` come from `train_domains`, `unseen` is only for judging;
    of `unlabelled` training may see the inputs, and nothing reads the labels."""

    shift: Shift
    train: Tensor
    validation: Tensor
    unseen: Tensor
    train_domains: tuple[str, ...]
    unseen_domains: tuple[str, ...]
    seed: int
    unlabelled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def rows(self, role: Literal["train", "validation", "unseen", "unlabelled"]) -> Tensor:
        return getattr(self, role)

    def train_domain_index(self, rows: Tensor) -> Tensor:
        """Index of each row's domain among `train_domains`, -1 for domains that are not trained on."""
        lookup = torch.full((len(self.shift.domains),), -1, dtype=torch.int64)
        for index, name in enumerate(self.train_domains):
            lookup[self.shift.domains.index(name)] = index
        return lookup[self.shift.domain[rows]]

    def require_every_class(self) -> None:
        present = set(self.shift.labels[self.train].tolist())
        for label, name in enumerate(self.shift.classes):
            if label not in present:
                places = self.shift.domain[self.shift.labels == label].unique().tolist()
                where = ", ".join(self.shift.domains[i] for i in places) or "no domain"
                raise InputError(
                    f"class {name!r}",
                    f"has no example to train on (it occurs in: {where})",
                    "Remove the class, hold another domain out, or bring examples of it from the training domains.",
                )


def _later(time: np.ndarray, after: Any) -> np.ndarray:
    try:
        return time > (np.datetime64(after) if time.dtype.kind == "M" else time.dtype.type(after))
    except (ValueError, TypeError):
        example = str(time[0])
        raise InputError(
            "after", f"is {after!r}, which is no time here", f"Give a value such as {example!r}."
        ) from None


def count_rows(inputs: Any) -> int:
    """Number of examples in raw or stored inputs."""
    return count_rows(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)


def _digest(inputs: Any, digest: Any) -> None:
    if isinstance(inputs, dict):
        for key in sorted(inputs):
            digest.update(str(key).encode())
            _digest(inputs[key], digest)
    elif isinstance(inputs, pd.DataFrame):
        digest.update(repr(list(inputs.columns)).encode())
        digest.update(pd.util.hash_pandas_object(inputs, index=False).to_numpy().tobytes())
    elif hasattr(inputs, "fingerprint"):
        digest.update(str(inputs.fingerprint).encode())
    elif isinstance(inputs, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(inputs)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    else:
        for item in inputs:
            digest.update(str(item).encode() + b"\0")
