"""Selectors by how training goes: which examples are learned late, and which are forgotten again."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unseen.curation.base import Pool, Selector, per_example, require_model
from unseen.curation.example_scores import Prefer, preferred
from unseen.errors import InputError
from unseen.measures.learning_order import LearningOrder
from unseen.networks.example_gradients import cross_entropy
from unseen.networks.gradient_methods import Model
from unseen.registry import selectors
from unseen.shifts.batch import map_tensors
from unseen.shifts.sampling import derive_seed


@selectors.register(
    "learning_order",
    summary="the epoch at which an example is learned",
    paper="Chatterjee & Zielinski 2022, arXiv 2203.10036",
    preset={"statistic": "first_learned"},
)
@selectors.register(
    "forgetting",
    summary="how often an example is forgotten again in training",
    paper="Toneva et al. 2019, arXiv 1812.05159",
)
class DynamicsSelector(Selector):
    """Trains a copy of the model on the pool for some epochs and watches each example after each.

    statistic  "forgotten": transitions from right to wrong, and more than any for what was never right;
               "first_learned": the first epoch at which it was right, and the next after the last for never
    """

    def __init__(
        self,
        prefer: Prefer = "hard",
        statistic: Literal["forgotten", "first_learned"] = "forgotten",
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 0.02,
        seed: int = 0,
    ):
        if epochs < 2:
            raise InputError("epochs", f"is {epochs}", "Nothing can be forgotten in less than two.")
        if statistic not in ("forgotten", "first_learned"):
            raise InputError(
                f"statistic {statistic!r}", "is not known", "Give 'forgotten' or 'first_learned'."
            )
        self.prefer, self.statistic, self.epochs, self.seed = prefer, statistic, epochs, seed
        self.batch_size, self.learning_rate = batch_size, learning_rate

    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        order = self.watch(require_model(model, "training"), pool)
        if self.statistic == "forgotten":
            values = np.where(order.correct.any(0), order.forgotten, self.epochs)
        else:
            values = np.minimum(order.first_learned, self.epochs + 1)
        return preferred(torch.from_numpy(values).double(), self.prefer)

    def watch(self, model: nn.Module, pool: Pool) -> LearningOrder:
        """The course of training, with observations from before the first epoch to after the last."""
        learner, order = copy.deepcopy(model).train(), LearningOrder()
        device = next(learner.parameters()).device
        optimizer = torch.optim.SGD(learner.parameters(), lr=self.learning_rate, momentum=0.9)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, 1))  # dropout
            order.observe(0, per_example(learner, pool, _correct).cpu())
            for epoch in range(self.epochs):
                for rows in torch.randperm(len(pool), generator=generator).split(self.batch_size):
                    part = pool.take(rows)
                    x, y = (map_tensors(lambda values: values.to(device), tree) for tree in part.examples)
                    optimizer.zero_grad()
                    cross_entropy(learner, x, y).mean().backward()
                    optimizer.step()
                per_example(learner, pool)  # raises where training has diverged
                order.observe(epoch + 1, per_example(learner, pool, _correct).cpu())
        return order


def _correct(model: Model, x: Any, y: Tensor) -> Tensor:
    return (model(x).argmax(-1) == y).double()
