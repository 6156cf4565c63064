"""Which layer of a teacher a layer of the student learns from: fixed beforehand, or the most similar ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unseen.distillation.distances import distance as distance_named
from unseen.errors import InputError, nearest


class Matched(NamedTuple):
    """distance  (..., S, K) from each student layer to its K nearest teacher layers, nearest first
    layer     (..., S, K) int64, which ones: 0 is the first that was given
    """

    distance: Tensor
    layer: Tensor


def nearest_layer(student: Tensor, teacher: Tensor, top_k: int = 1, distance: str = "mse") -> Matched:
    """For every position and student layer, the `top_k` teacher layers with the smallest distance (Wu et al. 2023).

    student   (..., S, F): S layers of each position
    teacher   (..., T, F)
    distance  "mse", "kl" or "cosine", see `unseen.distillation.distances`

    All pairs are ranked by one matrix product without gradient; the distances that count are then computed anew, so
    that time and memory of the backward pass grow with K and not with T. Raises `InputError` for K above T, and for
    shapes that don't fit.
    """
    if student.shape[:-2] != teacher.shape[:-2] or student.shape[-1] != teacher.shape[-1]:
        problem = f"have shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
        raise InputError(
            "hidden states", problem, "Both need the same positions and width; project one of them."
        )
    if not 1 <= top_k <= teacher.shape[-2]:
        problem = f"is {top_k} with {teacher.shape[-2]} teacher layer(s)"
        raise InputError("top_k", problem, "Choose from 1 to the number of teacher layers.")
    measure = distance_named(distance)
    with torch.no_grad():
        pairs = measure.pairs(student, teacher)
        layer = pairs.topk(top_k, largest=False).indices
    chosen = layer.flatten(-2)[..., None].expand(*layer.shape[:-2], -1, teacher.shape[-1])
    near = teacher.gather(-2, chosen).unflatten(-2, layer.shape[-2:])
    return Matched(measure.of(student.unsqueeze(-2), near), layer)


def choose_layers(layers: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Numbers of layers from 1 to `count`, in the order given.

    layers  "all", "last", "middle" (from a quarter to three quarters of the depth: 3 to 9 of 12) or numbers

    Raises `InputError` for a number that there isn't, for none, and for a word that isn't known.
    """
    if isinstance(layers, str):
        first = math.ceil(count / 4)
        ranges = {
            "all": range(1, count + 1),
            "last": range(count, count + 1),
            "middle": range(first, max(first, math.floor(3 * count / 4)) + 1),
        }
        if layers not in ranges:
            raise InputError(f"layers {layers!r}", "are not known", nearest(layers, ranges))
        return tuple(ranges[layers])
    if not layers or not set(layers) <= set(range(1, count + 1)):
        raise InputError("layers", f"are {list(layers)}", f"Give numbers from 1 to {count}.")
    return tuple(layers)


def fixed_layers(student: int, teacher: int, rule: Literal["spread", "last"] = "spread") -> tuple[int, ...]:
    """The teacher layer (from 1) of each of `student` layers.

    rule  "spread": every (teacher / student)-th, the last for the last (PKD-skip, Sun et al. 2019; TinyBERT);
          "last": the last ones (PKD-last)

    Raises `InputError` for a student deeper than its teacher.
    """
    if not 1 <= student <= teacher:
        problem = f"has {student} layer(s) and the teacher {teacher}"
        raise InputError("student", problem, "Give 1 or more, and no more than the teacher has.")
    if rule not in ("spread", "last"):
        raise InputError(f"rule {rule!r}", "is not known", nearest(rule, ("spread", "last")))
    if rule == "last":
        return tuple(range(teacher - student + 1, teacher + 1))
    return tuple((layer * teacher) // student for layer in range(1, student + 1))
