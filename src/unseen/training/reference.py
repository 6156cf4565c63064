"""What a deployed model remembers of in-distribution validation: what new inputs are compared with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unseen.detection import Familiarity
from unseen.errors import InputError
from unseen.networks import Bank

MOST = 1000
"""Examples of a reference: enough for a permutation test, and a few megabytes."""


@dataclass(frozen=True)
class Reference:
    """Outputs of the model for N in-distribution examples that it wasn't trained on.

    features  (N, D) float32
    logits    (N, C) float32
    labels    (N,) int64
    scores    (N,) float32, familiarity; higher is more familiar
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    scores: Tensor

    @classmethod
    def of(cls, validation: Bank, familiarity: Familiarity, *, most: int = MOST, seed: int = 0) -> Reference:
        """Up to `most` examples of a bank of ID validation, drawn with `seed`. The bank must have labels."""
        if validation.labels is None:
            raise InputError("validation", "has no labels", "Give outputs for labelled held-out examples.")
        generator = torch.Generator().manual_seed(seed)
        chosen = validation.take(torch.randperm(len(validation), generator=generator)[:most].sort().values)
        assert chosen.labels is not None  # as those it was taken from
        parts = chosen.features, chosen.logits, chosen.labels, familiarity.score(chosen)
        return cls(*(part.detach().cpu() for part in parts))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bank(self) -> Bank:
        return Bank(self.features, self.logits, self.labels)


def write_reference(reference: Reference, path: Path) -> None:
    """A safetensors file with one tensor a field."""
    save_file({each.name: getattr(reference, each.name).contiguous() for each in fields(Reference)}, path)


def read_reference(path: Path) -> Reference:
    """What `write_reference` wrote. Raises `InputError` for a file that is missing, damaged, or another's."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"file {str(path)!r}", f"cannot be read ({error})", "Restore it.") from None
    names = {each.name for each in fields(Reference)}
    if set(tensors) != names or len({len(value) for value in tensors.values()}) != 1:
        problem = (
            f"has the parts {', '.join(sorted(tensors))}, not {', '.join(sorted(names))} of equal length"
        )
        raise InputError(f"file {str(path)!r}", problem, "Restore it from a backup.")
    return Reference(**tensors)
