"""Labelled examples of one or more environments, numbered through: what a student learns from and is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from unseen.errors import InputError
from unseen.objectives.whole_data import WholeData
from unseen.shifts import Batch, Split
from unseen.shifts.sampling import DomainSampler
from unseen.training.data import TrainingData


class Environments:
    """N examples of D environments; an example's number, 0 to N - 1, is its id.

    get     gives the examples at positions (B,) as a batch
    domain  (N,) int64: their environments
    names   D names
    """

    def __init__(self, get: Callable[[Tensor], Batch], domain: Tensor, names: tuple[str, ...]):
        self._get, self.domain, self.names = get, domain.cpu(), names

    @classmethod
    def of(cls, data: Any) -> Environments:
        """From a map-style dataset of (x, y), its loader, a `Batch` of all examples, or a list or mapping of these,
        an environment each; a `Split` or `TrainingData` gives its training rows."""
        if isinstance(data, Environments):
            return data
        if isinstance(data, (Split, TrainingData)):
            return cls.of_rows(data, "train")
        named = isinstance(data, Mapping)
        listed = isinstance(data, (list, tuple))
        if (named or listed) and not data:
            raise InputError("data", "hold no environment", "Give at least one.")
        parts = [_readable(part) for part in (data.values() if named else data if listed else [data])]
        names = tuple(map(str, data)) if named else tuple(str(i) for i in range(len(parts)))
        sizes = torch.tensor([len(part) for part in parts])
        if not bool((sizes > 0).all()):
            raise InputError("data", "hold an environment without an example", "Leave it out.")
        domain = torch.arange(len(parts)).repeat_interleave(sizes)
        if not named and len(parts) == 1 and isinstance(parts[0], Batch):
            domain = parts[0].domain
            names = tuple(str(i) for i in range(parts[0].domains))
        if all(isinstance(part, Batch) for part in parts):
            whole = WholeData.of(_joined(parts))
        elif any(isinstance(part, Batch) for part in parts):
            raise InputError("data", "mix tensors and datasets", "Give all environments in one form.")
        else:
            whole = WholeData.of(ConcatDataset(parts))
        return cls(whole.batch, domain, names)

    @classmethod
    def of_rows(cls, data: Split | TrainingData, role: Any) -> Environments:
        """The rows of a role of a split, as its networks read them."""
        data = TrainingData(data) if isinstance(data, Split) else data
        rows, shift = data.split.rows(role), data.split.shift
        present = shift.domain[rows].unique()
        domain = torch.searchsorted(present, shift.domain[rows])
        names = tuple(shift.domains[i] for i in present.tolist())
        return cls(lambda positions: data.batch(rows[positions], 0), domain, names)

    def __len__(self) -> int:
        return len(self.domain)

    def batch(self, positions: Tensor, step: int = 0) -> Batch:
        """The examples at positions (B,), with these as ids and their environments as domains."""
        batch = self._get(positions)
        domain = self.domain[positions].to(batch.domain.device)
        ids = positions.to(batch.domain.device)
        return replace(batch, ids=ids, domain=domain, domains=len(self.names), step=step)

    def in_order(self, size: int = 256) -> Iterator[Batch]:
        """All examples once."""
        for positions in torch.arange(len(self)).split(size):
            yield self.batch(positions)

    def sampler(self, per_domain: int, seed: int) -> DomainSampler:
        """Draws `per_domain` positions of every environment a step."""
        return DomainSampler(torch.arange(len(self)), self.domain, per_domain, seed)

    def check_labels(self, classes: int) -> None:
        """Raise `InputError` for a label without a class; reads every example once."""
        from unseen.distillation.embedding_losses import check_labels

        for batch in self.in_order():
            check_labels(batch.y, classes)


def _readable(part: Any) -> Any:
    """A `Batch` where the examples lie in memory as tensors, else a map-style dataset."""
    part = part.dataset if isinstance(part, DataLoader) else part
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        x, y = part.tensors
        return Batch(x=x, y=y, domain=torch.zeros(len(y), dtype=torch.int64), domains=1)
    if not isinstance(part, (Batch, Dataset)) and not hasattr(part, "__getitem__"):
        raise InputError(
            f"data of type {type(part).__name__}",
            "have no stable order",
            "Give a map-style dataset of (x, y), its loader, a Batch, or a list or mapping of these.",
        )
    if not isinstance(part, Batch):
        WholeData.of(part)  # names what is wrong with a dataset that cannot be indexed
    return part


def _joined(parts: list[Batch]) -> Batch:
    """One batch of several, of their inputs and labels."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].x
    x: Any = (
        {key: torch.cat([part.x[key] for part in parts]) for key in first}  # type: ignore[index]
        if isinstance(first, dict)
        else torch.cat([part.x for part in parts])  # type: ignore[misc]
    )
    y = torch.cat([part.y for part in parts])
    return Batch(x=x, y=y, domain=torch.zeros(len(y)).long(), domains=1)
