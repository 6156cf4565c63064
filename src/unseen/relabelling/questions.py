"""What a judge is asked: is this image of that class? It sees an exemplar of it, and one of a class that is near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unseen.errors import InputError


@dataclass(frozen=True)
class Questions:
    """Q questions about some of N images, with exemplars out of M support images.

    images, support     (N, ...), (M, ...): each may be asked about or shown many times
    query               (Q,) int64: the image in question
    positive, negative  (Q,) int64: the exemplar of the class in question, and one of another: of the class that the
                        model predicts, or of the next candidate when that very class is in question
    name                Q names of the class in question
    rival               Q names of the class that the model predicts
    """

    images: Tensor
    support: Tensor
    query: Tensor
    positive: Tensor
    negative: Tensor
    name: Sequence[str]
    rival: Sequence[str]

    def __len__(self) -> int:
        return len(self.query)


class Verifier(Protocol):
    """A judge: a network, a language model that sees, a person."""

    def __call__(self, questions: Questions) -> Tensor:
        """P(True), (Q,) in [0, 1], for each question."""
        ...


def ask(verifier: Verifier, questions: Questions) -> Tensor:
    """The answers, (Q,) on the images' device. Raises `InputError` for what is no probability."""
    if not len(questions):
        return torch.zeros(0, device=questions.images.device)
    answers = torch.as_tensor(verifier(questions)).detach().float().to(questions.images.device)
    if answers.shape != (len(questions),):
        raise InputError(
            "verifier", f"gives shape {tuple(answers.shape)}", f"It must answer {len(questions)} questions."
        )
    if not bool(((answers >= 0) & (answers <= 1)).all()):  # NaN is neither
        raise InputError("verifier", "gives answers that are NaN or outside [0, 1]", "Give P(True).")
    return answers
