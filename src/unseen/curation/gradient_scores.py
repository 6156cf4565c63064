"""Selectors by the gradient of each example's loss: its length, or where it points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unseen.curation.base import Loss, Pool, Selector, example_loss, require_model
from unseen.curation.example_scores import Prefer, preferred
from unseen.curation.spaces import gradients_of
from unseen.errors import InputError
from unseen.networks.example_gradients import unit_rows
from unseen.registry import selectors


@selectors.register("grand", summary="norm of the gradient", paper="Paul et al. 2021, arXiv 2107.07075")
class GraNdSelector(Selector):
    """By the norm of the gradient in the parameters that match `parameters`. The paper keeps the hard, at
    initialisation; under wrong labels keep the easy."""

    def __init__(
        self,
        prefer: Prefer = "hard",
        parameters: str | Sequence[str] = "*",
        loss: Loss = "labels",
    ):
        self.prefer, self.parameters, self.loss = prefer, parameters, example_loss(loss)

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        gradients = gradients_of(require_model(model, "the gradient"), self.loss, self.parameters)
        return preferred(gradients.norms(pool.examples), self.prefer)


@selectors.register(
    "gradient_similarity",
    summary="gradients that point where those of a target set do",
    paper="after Xia et al. 2024 (LESS), arXiv 2402.04333",
)
class GradientSimilaritySelector(Selector):
    """By the cosine with the mean gradient of `target`, both projected to `dimension` numbers.

    target  examples like those to come, (x, y); None takes the pool itself, which prefers the typical

    LESS adds Adam's preconditioning and several checkpoints; this is one checkpoint under SGD.
    """

    def __init__(
        self,
        target: Pool | tuple[Any, ...] | None = None,
        dimension: int = 1024,
        seed: int = 0,
        parameters: str | Sequence[str] = "*",
        loss: Loss = "labels",
    ):
        self.target, self.dimension, self.seed = target, dimension, seed
        self.parameters, self.loss = parameters, example_loss(loss)

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        gradients = gradients_of(require_model(model, "the gradient"), self.loss, self.parameters)
        own = gradients.projected(pool.examples, self.dimension, self.seed)
        wanted = own
        if self.target is not None:
            wanted = gradients.projected(Pool.of(self.target).examples, self.dimension, self.seed)
        direction = wanted.mean(0)
        if not direction.norm() > 0:
            raise InputError("target", "has gradients that sum to zero", "Give other examples.")
        return unit_rows(own) @ (direction / direction.norm())
