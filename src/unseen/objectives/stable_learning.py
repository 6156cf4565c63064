"""Stable learning: train under weights of examples that make the features independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.decorrelation import (
    SMALLEST_BATCH,
    DecorrelationReweighter,
    Form,
    cluster_rows,
    correlations,
    mean_one,
    warn_of_few,
)
from unseen.objectives.example_weights import Table, effective_sample_size, reweighted
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


@objectives.register(
    "l2r",
    summary="A weight an example that decorrelates clusters of features, learned along with the network",
    paper="Chen et al. 2024, arXiv 2312.12475",
    preset={"clusters": 4, "bilevel": True, "steps": 3},
    search={"learning_rate": ("log", 0.5, 20), "clusters": ("choice", [2, 4, 8])},
)
@objectives.register(
    "stablenet",
    summary="Weights of each batch that make all pairs of features independent",
    paper="Zhang et al. 2021, arXiv 2104.07876",
    search={"learning_rate": ("log", 0.5, 20), "balance": ("log", 1e-6, 1e-2)},
)
class StableLearning(Objective):
    """Weighted mean loss; the weights come from a `DecorrelationReweighter` on the features, which are detached.

    clusters   None: all pairs of features; a number: pairs of different clusters, found anew every
               `recluster` steps from how stable their correlations were over the batches between
    bilevel    False: weights of each batch are solved for from uniform ones (StableNet; on graphs StableGNN);
               True: every example keeps its weight, which takes `steps` gradient steps whenever the example
               is met. The batch is then a held-out one for the network's last update, as in L2R-GNN's
               one-step approximation
    warmup     share of the run's steps with weights of one
    others     see `DecorrelationReweighter`
    The last weights are in the result's `objective` under "values.values": log weights by id.
    """

    mean: Tensor
    square: Tensor
    parts: Tensor
    seed: Tensor
    first: Tensor

    def __init__(
        self,
        clusters: int | Sequence[int] | None = None,
        bilevel: bool = False,
        warmup: float = 0.3,
        recluster: int = 50,
        rff: int = 5,
        steps: int = 20,
        learning_rate: float = 1.0,
        balance: float = 1e-4,
        queue: int = 1,
        decay: float = 0.9,
        form: Form = "covariance",
    ):
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError("warmup", f"is {warmup}", "Give the share of steps, from 0 to below 1.")
        if recluster < 2:
            raise InputError("recluster", f"is {recluster}", "Give a number of steps from 2.")
        self.bilevel, self.warmup, self.recluster = bilevel, warmup, recluster
        self.reweighter = DecorrelationReweighter(
            clusters, rff=rff, steps=steps, learning_rate=learning_rate, balance=balance, queue=queue,
            decay=decay, form=form,
        )  # fmt: skip
        self.values = Table()

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        for name, shape in (("mean", (features, features)), ("square", (features, features)), ("parts", ())):
            self.register_buffer(name, torch.zeros(shape))
        for name in ("seed", "first"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.reweighter.setup(features, 0)

    def begin(self, stage: Stage) -> None:
        if stage.batch_size < SMALLEST_BATCH:
            problem = f"is {stage.batch_size} over all domains, of which no dependence can be told"
            raise InputError("batch_size", problem, f"Give updates {SMALLEST_BATCH} examples or more.")
        self.seed.fill_(torch.randint(2**31, (), generator=stage.generator()))
        self.first.fill_(round(self.warmup * stage.steps))
        self.values.fill(torch.zeros(stage.size), stage.device)
        self.reweighter.setup(stage.network.features, stage.batch_size, stage.device)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        weights = self._weights(features.detach().float(), batch)
        loss = example_losses(model.head(features), reweighted(batch, weights)).mean()
        share = effective_sample_size(weights) / len(weights)
        return Loss(loss, {"effective": share})

    def _weights(self, z: Tensor, batch: Batch) -> Tensor:
        """(B,) weights of mean 1: new ones at the first evaluation of a batch, else those it was given."""
        if not batch.repeat and len(batch) >= SMALLEST_BATCH:
            self._observe(z, batch.step)
            if batch.step >= int(self.first):
                generator = torch.Generator().manual_seed(derive_seed(int(self.seed), batch.step))
                known = self.values.of(batch)
                start = known if self.bilevel else torch.zeros_like(known)
                values = self.reweighter.solve(z, start, generator)
                self.values.set(batch, values)
                self.reweighter.remember(z, mean_one(values))
                warn_of_few(mean_one(values))
        return mean_one(self.values.of(batch))

    def _observe(self, z: Tensor, step: int) -> None:
        """Follow the correlations of the features from batch to batch; cluster when enough have been seen."""
        if not isinstance(self.reweighter.clusters, int):
            return
        found = correlations(z)
        self.parts.add_(1)
        self.mean.add_((found - self.mean) / self.parts)
        self.square.add_((found.square() - self.square) / self.parts)
        if int(self.parts) >= self.recluster:
            distance = (self.square - self.mean.square()).clamp(min=0).sqrt()
            seed = derive_seed(int(self.seed), step, 1)
            self.reweighter.set_clusters(cluster_rows(distance, self.reweighter.clusters, seed))
            self.parts.zero_()
