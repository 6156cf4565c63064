"""How far a student's representation is from a teacher's, position by position, and over all pairs of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from unseen.distillation.logits import divergence
from unseen.errors import InputError, nearest


@dataclass(frozen=True)
class Distance:
    """of     (student (..., F), teacher (..., F)) -> (...), broadcasting
    pairs  (student (N, S, F), teacher (N, T, F)) -> (N, S, T) by one matrix product: it ranks layers, and
           cancellation may cost it digits that `of` keeps
    """

    of: Callable[[Tensor, Tensor], Tensor]
    pairs: Callable[[Tensor, Tensor], Tensor]


def distance(name: str) -> Distance:
    """A distance by name.

    "mse"     mean over features of the squared difference
    "kl"      KL(softmax(teacher) || softmax(student)) over features: for hidden states, or for logarithms of
              attention, which it takes as it is
    "cosine"  1 - cosine of the angle

    Raises `InputError` for another name.
    """
    if name not in DISTANCES:
        raise InputError(f"distance {name!r}", "is not known", nearest(name, DISTANCES))
    return DISTANCES[name]


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


def _mse_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    cross = student @ teacher.mT
    return (
        student.square().sum(-1)[..., None] + teacher.square().sum(-1)[..., None, :] - 2 * cross
    ) / student.shape[-1]


def _kl_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    log_teacher = torch.log_softmax(teacher, -1)
    target = log_teacher.exp()
    return (target * log_teacher).sum(-1)[..., None, :] - torch.log_softmax(student, -1) @ target.mT


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - cosine_similarity(student, teacher, dim=-1)


def _cosine_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - normalize(student, dim=-1) @ normalize(teacher, dim=-1).mT


DISTANCES = {
    "mse": Distance(_mse, _mse_pairs),
    "kl": Distance(divergence, _kl_pairs),
    "cosine": Distance(_cosine, _cosine_pairs),
}
