"""Banks of a network that a study judges: in memory, or memory-mapped where they would fill it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from unseen.networks import Bank, Network
from unseen.networks.bank_files import write_bank
from unseen.networks.feature_cache import cache_folder
from unseen.shifts.shift import count_rows, take
from unseen.training.data import Observer, Role, TrainingData, network_outputs, weights_hash
from unseen.training.kept_outputs import blocks

MOST_IN_MEMORY = 2**28
"""Bytes of all banks of a network (a quarter of a GiB): fewer are not worth the way over the disk."""


class Banks:
    """Makes the banks of one network: each in a folder within `folder`, or in memory where that is None."""

    def __init__(self, network: Network, data: TrainingData, folder: Path | None):
        self.network, self.data, self.folder = network, data, folder

    def of(self, role: Role, observers: Sequence[Observer]) -> Bank:
        """Outputs for the rows of a role."""

        def outputs(rows: Tensor) -> Bank:
            return self.data.bank(self.network, rows, observers=observers)

        rows = self.data.split.rows(role)
        if hasattr(self.network.featurizer, "support"):  # neighbours are seen together: not in blocks
            return outputs(rows)
        return self._kept(outputs, rows)

    def of_inputs(self, stored: Any, observers: Sequence[Observer]) -> Bank:
        """Outputs for other inputs, as the preprocessing has encoded them."""
        made_by = weights_hash(self.network)

        def outputs(rows: Tensor) -> Bank:
            some = stored if len(rows) == count_rows(stored) else take(stored, rows)
            bank = network_outputs(self.network, self.data.preprocessing, some, observers=observers)
            return replace(bank, network_hash=made_by)

        return self._kept(outputs, torch.arange(count_rows(stored)))

    def _kept(self, outputs: Callable[[Tensor], Bank], rows: Tensor) -> Bank:
        if self.folder is None:
            return outputs(rows)
        folder = self.folder / str(sum(path.is_dir() for path in self.folder.iterdir()))
        return replace(
            Bank.open(write_bank(folder, blocks(outputs, rows), len(rows))), head=self.network.head
        )


@contextmanager
def banks_of(
    network: Network, data: TrainingData, examples: int, observers: Sequence[Observer]
) -> Iterator[Banks]:
    """Banks of some examples in all: on disk while this lasts where they are more than `MOST_IN_MEMORY`.

    They have the same bits in either place: blocks hold whole batches of the pass.
    """
    width = network.features + network.classes
    if any(observer.observes for observer in observers):
        one = data.bank(network, data.split.train[:1], observers=observers)
        width += sum(value.numel() for value in one.layers.values())
    if examples * width * 4 <= MOST_IN_MEMORY:
        yield Banks(network, data, None)
        return
    with _temporary_folder() as folder:
        yield Banks(network, data, folder)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder beside the feature cache; those of processes that were killed are deleted on the way."""
    root = cache_folder() / "banks"
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob("*.lock"):
        try:
            with FileLock(path, timeout=0):  # the system freed it when its process died
                _delete(path)
        except Timeout:
            continue
    folder = Path(tempfile.mkdtemp(dir=root))
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        try:
            yield folder
        finally:
            _delete(lock)


def _delete(lock: Path) -> None:
    folder = lock.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():  # a system may not let go of files that are open
        lock.unlink(missing_ok=True)
