"""How often a spurious attribute agrees with the label, and examples in which it agrees as often as asked."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.sampling import derive_seed


def spurious_ratio(semantic: Tensor, attribute: Tensor) -> float:
    """Share of examples whose attribute equals their semantic label, both (N,) int64 from 0.

    For two balanced classes: 1 as in fully correlated training data, 0.5 balanced, 0 inversely correlated
    (Benoit et al. 2024, arXiv 2312.16313).
    """
    if semantic.shape != attribute.shape or not len(semantic):
        raise InputError(
            "semantic, attribute",
            f"have shapes {tuple(semantic.shape)} and {tuple(attribute.shape)}",
            "Give one of each for at least one example.",
        )
    return float((semantic == attribute).float().mean())


def rows_at_ratio(semantic: Tensor, attribute: Tensor, ratio: float, count: int, seed: int = 0) -> Tensor:
    """(count,) positions of different examples of which a share `ratio` agrees, classes equally frequent.

    Each class gives count / classes examples, rounded(ratio) of them with the attribute of the class.
    Raises `InputError` when a class has too few examples that agree or that differ.
    """
    if not 0 <= ratio <= 1:
        raise InputError("ratio", f"is {ratio}", "Give a number in [0, 1].")
    generator = torch.Generator().manual_seed(derive_seed(seed))
    classes = int(semantic.max()) + 1
    agrees, parts = semantic == attribute, []
    for label in range(classes):
        own = count // classes + (label < count % classes)
        wanted = {True: round(ratio * own)}
        wanted[False] = own - wanted[True]
        for same, number in wanted.items():
            pool = ((semantic == label) & (agrees == same)).nonzero().squeeze(1)
            if len(pool) < number:
                raise InputError(
                    f"ratio {ratio:g} of {count} examples",
                    f"needs {number} of class {label} whose attribute {'agrees' if same else 'differs'}, and "
                    f"there are {len(pool)}",
                    "Ask for fewer examples or another ratio.",
                )
            parts.append(pool[torch.randperm(len(pool), generator=generator)[:number]])
    return torch.cat(parts).sort().values
