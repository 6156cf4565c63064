"""What a student's logits lack of a teacher's: a divergence of softened distributions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError, nearest

Reduction = Literal["mean", "sum", "none"]


def logit_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student / temperature)), summed over the last dimension.

    student, teacher  logits (..., C); no gradient flows to the teacher
    temperature       above 0. The result isn't multiplied by its square (Hinton et al. 2015 do, so that the
                      gradient keeps its scale; Wu et al. 2023, arXiv 2211.11300, don't)
    mask              (...), nonzero where a position counts: the others are read neither forward nor backward
    reduction         "mean" or "sum" over the positions that count, or "none": (...), with a mask (kept,)

    Raises `InputError` for logits of different shapes, a temperature not above 0 or a mask without any position.
    """
    if student.shape != teacher.shape:
        problem = f"have shape {tuple(teacher.shape)} and the student's {tuple(student.shape)}"
        raise InputError(
            "the teacher's logits", problem, "Both need the same positions and classes or tokens."
        )
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 1.")
    student, teacher = kept(student, mask), kept(teacher.detach(), mask)
    return reduced(divergence(student / temperature, teacher / temperature), reduction)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """(...) KL(softmax(teacher) || softmax(student)) over the last dimension, in single precision at least.

    A class that the teacher excludes (a logit of -inf) has no share in it, whatever the student says.
    """
    precise = torch.promote_types(student.dtype, torch.float32)
    target = torch.softmax(teacher, -1, dtype=precise)
    log_student = torch.log_softmax(student, -1, dtype=precise).masked_fill(target == 0, 0)
    return torch.nn.functional.kl_div(log_student, target, reduction="none").sum(-1)


def kept(values: Tensor, mask: Tensor | None) -> Tensor:
    """The positions of values (..., F) where mask (...) is nonzero, (kept, F); without a mask all, as they are.

    Raises `InputError` for a mask of another shape, or one that keeps nothing.
    """
    if mask is None:
        return values
    if mask.shape != values.shape[:-1]:
        problem = f"has shape {tuple(mask.shape)}"
        raise InputError("mask", problem, f"Give {tuple(values.shape[:-1])}, a value for each position.")
    selected = values[mask.to(values.device).bool()]
    if not len(selected):
        raise InputError("mask", "leaves no position: every token is masked", "Leave out empty examples.")
    return selected


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """The mean or the sum of values, or themselves for "none"; `InputError` for another reduction."""
    if reduction == "none":
        return values
    if reduction not in ("mean", "sum"):
        raise InputError(
            f"reduction {reduction!r}", "is not known", nearest(reduction, ("mean", "sum", "none"))
        )
    return values.mean() if reduction == "mean" else values.sum()
