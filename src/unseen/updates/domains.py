"""What rules share that treat each training domain on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


def present_domains(batch: Batch, rule: str) -> list[int]:
    """Domains with examples in the batch, ascending; `InputError` when training has only one domain."""
    if batch.domains < 2:
        raise InputError(
            f"update rule {rule!r}",
            "compares the gradients of training domains, but there is only one",
            "Train on at least two domains, or choose a rule that needs none, such as plain.",
        )
    return batch.domain.unique().tolist()


def shuffled(domains: list[int], seed: int, step: int) -> list[int]:
    """The domains in an order that depends on `seed` and `step` alone, so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed(derive_seed(seed, step))
    return [domains[index] for index in torch.randperm(len(domains), generator=generator).tolist()]


def pooled(losses: list[Loss], sizes: list[int]) -> Loss:
    """The loss of several parts of a batch, weighted by their numbers of examples; without gradients."""
    weights = [size / sum(sizes) for size in sizes]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack([w * value.detach() for w, value in zip(weights, values, strict=True)]).sum(0)

    names = [name for name in losses[0].parts if all(name in loss.parts for loss in losses)]
    parts = {name: mean([loss.parts[name] for loss in losses]) for name in names}
    return Loss(mean([loss.total for loss in losses]), parts)
