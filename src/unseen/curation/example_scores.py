"""Selectors by what a model says of an example: its loss, its error, its margin; and chance."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.curation.base import (
    Loss,
    Pool,
    Selector,
    example_loss,
    per_example,
    require_labels,
    require_model,
)
from unseen.errors import InputError
from unseen.networks.example_gradients import cross_entropy, token_cross_entropy
from unseen.networks.gradient_methods import Model
from unseen.registry import selectors

Prefer = Literal["hard", "easy"]


def preferred(hardness: Tensor, prefer: Prefer) -> Tensor:
    """Scores by which the hard, or the easy, examples are kept first."""
    if prefer not in ("hard", "easy"):
        raise InputError(f"prefer {prefer!r}", "is not known", "Give 'hard' or 'easy'.")
    return hardness if prefer == "hard" else -hardness


@selectors.register("random", summary="by chance; needs no model")
class RandomSelector(Selector):
    def __init__(self, seed: int = 0):
        self.seed = seed

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        return torch.rand(len(pool), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


@selectors.register(
    "perplexity",
    summary="least mean loss of an answer's tokens first",
    paper="Marion et al. 2023, arXiv 2309.04564",
    preset={"loss": "tokens"},
)
@selectors.register("small_loss", summary="least loss first", paper="Han et al. 2018, arXiv 1804.06872")
class LossSelector(Selector):
    """By the loss (n,) that `loss(model, x, y)` gives."""

    def __init__(self, prefer: Prefer = "easy", loss: Loss = "labels"):
        self.prefer, self.loss = prefer, example_loss(loss)

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        model = require_model(model, "the loss")
        if self.loss in (cross_entropy, token_cross_entropy):
            tokens = self.loss is token_cross_entropy
            require_labels(pool, "Perplexity" if tokens else "Cross-entropy", tokens=tokens)
        return preferred(per_example(model, pool, self.loss), self.prefer)


@selectors.register(
    "el2n", summary="length of the error of the probabilities", paper="Paul et al. 2021, arXiv 2107.07075"
)
class EL2NSelector(Selector):
    """By |p - onehot(y)|, between 0 and sqrt 2. The paper keeps the hard; under wrong labels keep the easy."""

    def __init__(self, prefer: Prefer = "hard"):
        self.prefer = prefer

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        model = require_model(model, "the error")
        require_labels(pool, "EL2N")
        return preferred(per_example(model, pool, _error_length), self.prefer)


@selectors.register(
    "margin", summary="logit of the label less the best other", paper="Coleman et al. 2020, arXiv 1906.11829"
)
class MarginSelector(Selector):
    """Hard examples, kept by default, have a small or negative margin."""

    def __init__(self, prefer: Prefer = "hard"):
        self.prefer = prefer

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        model = require_model(model, "the margin")
        require_labels(pool, "The margin")
        return preferred(-per_example(model, pool, _margin), self.prefer)


def _error_length(model: Model, x: Any, y: Tensor) -> Tensor:
    probabilities = model(x).softmax(-1)
    return (probabilities - nn.functional.one_hot(y, probabilities.shape[-1])).norm(dim=1)


def _margin(model: Model, x: Any, y: Tensor) -> Tensor:
    logits = model(x)
    label = logits.gather(1, y.unsqueeze(1))
    return label[:, 0] - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
