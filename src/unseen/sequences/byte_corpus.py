"""Real text that every Python installation has: the standard library's own sources, as bytes."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unseen.errors import InputError


@dataclass(frozen=True)
class ByteCorpus:
    """Bytes as int64 tokens 0 .. 255: `train` and `held_out` come from different files."""

    train: Tensor
    held_out: Tensor

    def sequences(self, count: int, length: int, *, seed: int) -> Tensor:
        """Held-out sequences (count, length), their places drawn without overlap."""
        slots = len(self.held_out) // length
        if count > slots:
            raise InputError("count", f"is {count}", f"There are {slots} sequences of {length} bytes.")
        chosen = torch.randperm(slots, generator=torch.Generator().manual_seed(seed))[:count]
        return torch.stack([self.held_out[slot * length : (slot + 1) * length] for slot in chosen.tolist()])


def standard_library_corpus(every: int = 10) -> ByteCorpus:
    """The standard library's top-level modules (about 4.7 MB) in name order, every tenth file held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if len(files) < 2 * every:
        raise InputError(
            "standard library", f"has {len(files)} source files", "Use a Python with its sources."
        )

    def read(chosen: list[Path]) -> Tensor:
        return torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in chosen)), dtype=torch.uint8).long()

    held_out = files[every - 1 :: every]
    return ByteCorpus(read([f for f in files if f not in held_out]), read(held_out))
