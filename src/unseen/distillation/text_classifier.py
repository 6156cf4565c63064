"""Students as classifiers: an image encoder into a teacher's space, and texts' embeddings as its linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unseen.distillation.teachers import check_embeddings, unit
from unseen.errors import InputError
from unseen.networks import Network


class Embedder(nn.Module):
    """Embeddings (N, D) of length 1: P f(x) / |P f(x)|.

    student     inputs to features (N, F)
    projection  P, linear from F to D; None: features are embeddings already
    """

    def __init__(self, student: nn.Module, projection: nn.Linear | None = None):
        super().__init__()
        self.student, self.projection = student, projection

    def forward(self, x: Any) -> Tensor:
        features = check_features(self.student(x))
        return unit(features if self.projection is None else self.projection(features))


def text_classifier(embedder: nn.Module, texts: Tensor, logit_scale: float = 100.0) -> Network:
    """A network whose logits are logit_scale cos(embedding, text): texts (C, D) of any length become its head.

    The head is frozen and the embedder shared, so that networks of other texts cost nothing.
    """
    check_embeddings("text embeddings", texts)
    with torch.device("meta"):  # a head that is replaced at once draws nothing from the caller's generator
        network = Network(embedder, texts.shape[1], len(texts))
    network.head = text_head(texts, logit_scale)
    return network


def text_head(texts: Tensor, logit_scale: float) -> nn.Linear:
    """A frozen linear layer without offset: logit_scale times the direction of texts (C, D)."""
    head = nn.Linear(texts.shape[1], len(texts), device="meta")
    head.weight = nn.Parameter(logit_scale * unit(texts.detach().float()))
    head.bias = nn.Parameter(torch.zeros(len(texts), device=texts.device))
    return head.requires_grad_(False)


def check_features(features: Any) -> Tensor:
    """The student's output; `InputError` unless it is (N, F)."""
    if not isinstance(features, Tensor) or features.dim() != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            "student's output", f"is {shape}", "Give a module that returns features (N, F): pool or flatten."
        )
    return features
