"""A distillation loss put together from terms, each over one named output or a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.distillation.distances import distance as distance_named
from unseen.distillation.layer_matching import nearest_layer
from unseen.distillation.logits import kept
from unseen.errors import InputError, nearest


@dataclass(frozen=True)
class Term:
    """One part of a distillation loss: the mean over positions of a distance between named outputs.

    student      name of the student's output, or names of its layers
    teacher      of the teacher's; None: the same. Several layers are paired in order, unless `top_k` is given
    distance     "mse", "kl" or "cosine" over the last dimension
    weight       from 0
    temperature  divides both outputs, for "kl"
    top_k        each position and student layer learns from its K nearest of the teacher's layers, all of one width
    project      applied to the teacher's outputs, such as `nn.Linear` where widths differ; its parameters are yours
                 to train
    """

    student: str | Sequence[str]
    teacher: str | Sequence[str] | None = None
    distance: str = "mse"
    weight: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    project: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        distance_named(self.distance)
        if not self.temperature > 0:
            raise InputError("temperature", f"is {self.temperature}", "Give a positive number, such as 1.")
        if self.temperature != 1 and self.distance != "kl":
            problem = f"is {self.temperature} for the distance {self.distance}"
            raise InputError("temperature", problem, 'Only "kl" softens: leave it at 1, or choose "kl".')
        if not self.weight >= 0:
            raise InputError("weight", f"is {self.weight}", "Give a number from 0.")
        if self.top_k is None and len(_listed(self.student)) != len(_listed(self.teacher or self.student)):
            problem = f"has {len(_listed(self.student))} student and {len(_listed(self.teacher or ()))} teacher layers"
            raise InputError("term", problem, "Name as many, or give top_k to match them by similarity.")

    @property
    def name(self) -> str:
        return f"{self.distance} {', '.join(_listed(self.student))}"

    def value(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor | None
    ) -> Tensor:
        """The term without its weight; see `distil`."""
        ours = [_masked(_output(student, "student", name), mask) for name in _listed(self.student)]
        theirs = [
            _masked(_output(teacher, "teacher", name).detach(), mask)
            for name in _listed(self.teacher or self.student)
        ]
        if self.project is not None:
            theirs = [self.project(output) for output in theirs]
        ours, theirs = ([output / self.temperature for output in side] for side in (ours, theirs))
        if self.top_k is not None:
            near = nearest_layer(torch.stack(ours, -2), torch.stack(theirs, -2), self.top_k, self.distance)
            return near.distance.sum((-2, -1)).mean()
        measure = distance_named(self.distance)
        total = ours[0].new_zeros(())
        for own, other in zip(ours, theirs, strict=True):
            if own.shape != other.shape:
                problem = f"have shapes {tuple(own.shape)} and {tuple(other.shape)}"
                raise InputError(
                    f"outputs of the term {self.name!r}", problem, "Project the teacher's to the student's."
                )
            total = total + measure.of(own, other).mean()
        return total


def distil(
    terms: Sequence[Term],
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms, and each term by name without its weight.

    student, teacher  outputs by name, as `named_outputs` collects them: hidden states (B, T, F), logarithms of
                      attention (B, H, T, T), representations (B, F), logits. No gradient flows to the teacher
    mask              (B, T), nonzero for real tokens: for outputs of every token, for each attention head the same

    Raises `InputError` for no terms, a name that is not among the outputs, and shapes that don't fit.
    """
    if not terms:
        raise InputError("terms", "are none", "Give one Term at least.")
    parts = {term.name: term.value(student, teacher, mask) for term in terms}
    return sum((term.weight * parts[term.name] for term in terms), torch.zeros(())), parts


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _output(outputs: Mapping[str, Tensor], whose: str, name: str) -> Tensor:
    if name not in outputs:
        raise InputError(f"output {name!r}", f"is not among the {whose}'s", nearest(name, outputs))
    return outputs[name]


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens of (B, ..., T, F); a representation (B, F) has no tokens to leave out."""
    if mask is None or values.dim() < 3:
        return values
    positions = mask.view(len(mask), *[1] * (values.dim() - 3), -1)
    if positions.shape[-1] != values.shape[-2] or len(mask) != len(values):
        problem = f"has shape {tuple(mask.shape)} for an output {tuple(values.shape)}"
        raise InputError("mask", problem, "Give (B, T), a value for each token.")
    return kept(values, positions.expand(values.shape[:-1]))
