"""Inputs that are moved, each within a ball of its own, to where an objective grows fastest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.objectives.continuous_inputs import changed_inputs
from unseen.shifts import Batch

Moves = dict[str, Tensor]
"""By name of a continuous input, how it is moved."""


class Perturbation(ABC):
    """What of an input may move. `size` is the length that a relative radius multiplies, one an example."""

    @abstractmethod
    def start(self, value: Tensor) -> Tensor:
        """The move (B, ...) that changes nothing of a continuous input (B, ...)."""

    @abstractmethod
    def size(self, value: Tensor) -> Tensor:
        """(B,) Euclidean length of what moves."""

    @abstractmethod
    def apply(self, value: Tensor, move: Tensor) -> Tensor:
        """The moved input."""


class ValuePerturbation(Perturbation):
    """Every value moves: pixels, columns, embeddings.

    clamp  keep within the least and largest value in the batch, of each channel of images (B, C, H, W), of each
           column of vectors
    fixed  positions in the last dimension that stay, such as columns that code a category
    """

    def __init__(self, clamp: bool = False, fixed: Sequence[int] = ()):
        self.clamp, self.fixed = clamp, list(fixed)

    def start(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def size(self, value: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._free(value).flatten(1), dim=1)

    def apply(self, value: Tensor, move: Tensor) -> Tensor:
        moved = value + self._free(move)
        if not self.clamp:
            return moved
        others = [0, *range(2, value.dim())] if value.dim() > 2 else [0]
        return moved.clamp(value.amin(others, keepdim=True), value.amax(others, keepdim=True))

    def _free(self, value: Tensor) -> Tensor:
        if not self.fixed:
            return value
        free = torch.ones(value.shape[-1], dtype=value.dtype, device=value.device)
        free[self.fixed] = 0
        return value * free


class StylePerturbation(Perturbation):
    """Mean and standard deviation of each channel of each image move, (B, 2, C, 1, 1); its contents stay."""

    def start(self, value: Tensor) -> Tensor:
        if value.dim() != 4:
            problem = f"needs images (B, C, H, W), but an input has the shape {tuple(value.shape)}"
            raise InputError("the perturbation of styles", problem, "Choose perturb='pixel'.")
        return value.new_zeros(len(value), 2, value.shape[1], 1, 1)

    def size(self, value: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.stack(_style(value), 1).flatten(1), dim=1)

    def apply(self, value: Tensor, move: Tensor) -> Tensor:
        mean, deviation = _style(value)
        # a negative deviation would turn the image into its negative, which is no style of it
        moved = (deviation + move[:, 1]).clamp(min=0)
        return (value - mean) / deviation * moved + mean + move[:, 0]


def _style(images: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(images, (2, 3), keepdim=True)
    return mean, (variance + 1e-5).sqrt()


@contextmanager
def moved_inputs(
    network: nn.Module, batch: Batch, perturbation: Perturbation, moves: Moves
) -> Iterator[Batch]:
    """Inside, evaluate the given batch: its continuous inputs are moved (see `changed_inputs`)."""
    with changed_inputs(
        network, batch, lambda name, value: perturbation.apply(value, moves[name])
    ) as changed:
        yield changed


def adversarial_moves(
    network: nn.Module,
    batch: Batch,
    objective: Callable[[Batch], Tensor],
    perturbation: Perturbation,
    *,
    radius: float,
    steps: int = 1,
) -> Moves:
    """Moves that increase the scalar `objective` of the batch, found by `steps` steps of gradient ascent.

    radius  length of an example's whole path, relative to what moves of it (`Perturbation.size`). The gradient
            is normalised for each example: across the batch, an example would move by how the others look
    """
    moves: Moves = {}
    for _ in range(steps):
        leaves: Moves = {}
        sizes: Moves = {}

        def follow(name: str, value: Tensor, leaves: Moves = leaves, sizes: Moves = sizes) -> Tensor:
            if name not in leaves:  # the objective may evaluate the batch more than once
                begin = moves[name] if name in moves else perturbation.start(value)
                leaves[name] = begin.detach().requires_grad_()
                sizes[name] = perturbation.size(value.detach())
            return perturbation.apply(value, leaves[name])

        with changed_inputs(network, batch, follow) as changed:
            rise = objective(changed)
        gradients = torch.autograd.grad(rise, list(leaves.values()))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
            pace = radius / steps * sizes[name] / length.clamp(min=torch.finfo(length.dtype).tiny)
            moves[name] = leaf.detach() + gradient * pace.view(-1, *[1] * (gradient.dim() - 1))
    return moves
