"""The objective contract: a loss over a batch of all training domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.objectives.stages import Stage
from unseen.shifts import Batch


@dataclass
class Loss:
    """`total` is minimised; `parts` are named pieces of it, for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """What is minimised. Subclasses store hyperparameters in `__init__` and define `forward`.

    An objective may own parameters (a discriminator) and buffers (running means). Buffers are changed in
    place, and only when `batch.repeat` is False, because update rules may evaluate a batch more than once.
    """

    needs_domains = False
    """Whether the loss makes no sense with a single training domain."""

    needs_features = False
    """Whether what it adds to the risk acts on the featurizer alone: without trained features it does nothing."""

    several_views = False
    """Whether `prepare` puts several views of each example where the network's inputs were: update rules that give
    a batch to the network themselves cannot read it then."""

    carries_weights = False
    """Whether weights of examples (`batch.weight`) act on every term of the loss, so that an example of weight
    zero might as well be absent. Others refuse data with weights."""

    needs_unlabelled = False
    """Whether the loss reads `batch.unlabelled`: the split must set examples without labels apart."""

    needs_outliers = False
    """Whether the loss reads outliers in `batch.auxiliary`: the shift must have some (`shift.with_outliers`)."""

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        """The network to train, made of what `build` gives: several heads or members of the learner's network."""
        return build()

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        """Called once before training: create parameters and buffers that depend on these sizes."""

    def begin(self, stage: Stage) -> None:
        """Called once before the first step and before the optimizer is built; not when a run is resumed.

        What it decides must lie in buffers (a `Table` for what depends on the number of rows) or in weights:
        a checkpoint restores these and nothing else. An objective that defines it trains one run at a time.
        """

    def finish(self, stage: Stage) -> None:
        """Called once after the last step on the final weights, which it may change in place: the run's result."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change the batch before the loss sees it (mixing, masking). An objective's randomness is here.

        One that can say what it needs at random before it sees the batch defines `draw` and `change` instead:
        stacked runs are then changed together.
        """
        drawn = self.draw(len(batch), generator)
        return self.change(batch, {name: value.to(batch.y.device) for name, value in drawn.items()})

    def draw(self, examples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What `change` needs at random, decided by the settings, the number of examples and the generator alone."""
        return {}

    def change(self, batch: Batch, drawn: dict[str, Tensor]) -> Batch:
        """The batch, changed by tensor operations that read what was drawn and no number among the settings."""
        return batch

    def resets_optimizer_at(self, step: int) -> bool:
        """Whether the loss jumps at update `step`: the optimizer should forget its moments before it."""
        return False

    def forward(self, model: Network, batch: Batch) -> Loss:
        raise TypeError(f"{type(self).__name__} must define forward(model, batch) -> Loss")


def example_losses(logits: Tensor, batch: Batch) -> Tensor:
    """(B,) cross-entropy of each example, for labels or soft targets, times the example's weight."""
    losses = nn.functional.cross_entropy(logits, batch.y, reduction="none")
    return losses if batch.weight is None else losses * batch.weight


def domain_means(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean of `values` (B, ...) over each domain, in one matrix product.

    Returns means (D, ...), zero for a domain without an example in the batch, and `present` (D,), 1.0 or 0.0.
    """
    member = nn.functional.one_hot(batch.domain, batch.domains).to(values.dtype)
    counts = member.sum(0)
    with torch.autocast(values.device.type, enabled=False):  # a mean of losses is no place for half precision
        means = (member / counts.clamp(min=1)).T @ values.flatten(1 if values.dim() > 1 else 0)
    return means.view(batch.domains, *values.shape[1:]), (counts > 0).to(values.dtype)


def mean_over_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of `values` (D,) over the domains that have examples in the batch."""
    return (values * present).sum() / present.sum()
