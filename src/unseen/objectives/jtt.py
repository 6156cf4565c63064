"""JTT: train twice, the second time with more weight on what the first model got wrong."""

from __future__ import annotations

import warnings

import torch

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.example_weights import Table, reweighted
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "jtt",
    summary="Two trainings: the second weights up what an early-stopped first one misclassifies",
    paper="Liu et al. 2021, arXiv 2107.09044",
    search={"upweight": ("choice", [5, 20, 50, 100]), "first": ("choice", [0.02, 0.05, 0.2, 0.5])},
)
class JTT(Objective):
    """Algorithm 1: an identification model is trained by ERM and stopped early; its error set among the
    training examples counts `upweight` times in the training of a new model.

    first     length of the first training, as a share of the run's steps, in (0, 1]: T of the paper
    upweight  lambda_up of the paper, from 1

    The paper repeats the examples of the error set; here they are weighted, which has the same mean gradient.
    Weights have mean 1 over the training examples, so the learning rate keeps its meaning. Both
    hyperparameters decide much and the paper chose them by the worst group of a validation set with group
    labels; it trains the first model for 1 of 50 (CelebA) to 60 of 300 epochs (Waterbirds).
    """

    carries_weights = True

    def __init__(self, first: float = 0.2, upweight: float = 20.0):
        super().__init__()
        if not 0 < first <= 1:
            raise InputError(
                "first", f"is {first}", "Give the share of the run's steps, above 0 and up to 1."
            )
        if not upweight >= 1:
            raise InputError("upweight", f"is {upweight}", "Give a factor from 1, such as 20.")
        self.first, self.upweight, self.weights = first, upweight, Table()

    def begin(self, stage: Stage) -> None:
        rows = stage.rows("train")
        # kept are the last weights: the best ones on validation would get less wrong
        identification = stage.train("erm", steps=max(1, round(self.first * stage.steps)), keep="last")
        wrong = ~stage.bank(identification, rows).correct
        if not wrong.any():
            warnings.warn(
                "jtt: the first model misclassifies no training example, so the second training is plain ERM. "
                f"Stop the first one earlier (first={self.first:g}).",
                UnseenWarning,
                stacklevel=2,
            )
        weights = torch.ones(stage.size)
        own = torch.where(wrong, float(self.upweight), 1.0)
        weights[rows] = own / own.mean()
        self.weights.fill(weights, stage.device)

    def forward(self, model: Network, batch: Batch) -> Loss:
        batch = reweighted(batch, self.weights.of(batch))
        return Loss(example_losses(model(batch.x), batch).mean())
