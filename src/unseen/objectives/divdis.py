"""DivDis: heads on one featurizer that all fit the labels and are independent on unlabelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.networks.hypotheses import Hypotheses, with_heads
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.diversity import (
    Reduction,
    check_reduction,
    pair_loss,
    pairwise,
    prior_divergence,
)
from unseen.objectives.label_prior import LabelPrior
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch


def choose_hypothesis(stage: Stage, choice: str | int) -> None:
    """Let the run's hypotheses answer by "mean", "last", a number, or the most accurate in ID "validation".

    All hypotheses fit the training distribution, so validation rarely tells them apart; a few labels of the
    target do (`unseen.networks.combining.disambiguate`), with which `network.head.choose` chooses anew.
    """
    network = stage.network
    assert isinstance(network, Hypotheses)
    if choice == "validation":
        bank = stage.bank(network, stage.rows("validation"))
        assert bank.labels is not None
        with torch.no_grad():
            logits = network.head.all_logits(bank.features.to(stage.device)).cpu()
        correct = (logits.argmax(-1) == bank.labels).float().mean(-1)
        network.head.choose(int(correct.argmax()))
    else:
        network.head.choose({"mean": None, "last": network.count - 1}.get(choice, choice))  # type: ignore[arg-type]


def check_choice(choice: str | int, count: int) -> None:
    """Raise `InputError` for a choice that `choose_hypothesis` does not know."""
    if choice not in ("mean", "last", "validation") and not (isinstance(choice, int) and 0 <= choice < count):
        raise InputError(
            f"choice {choice!r}", "is not known", f"Use mean, last, validation or 0 to {count - 1}."
        )


def labelled_risk(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy averaged over hypotheses and examples; logits (K, B, C)."""
    return torch.stack([example_losses(own, batch).mean() for own in logits]).mean()


def require_unlabelled(objective: str, batch: Batch) -> None:
    if batch.unlabelled is None:
        raise InputError(
            f"objective {objective!r}",
            "got a batch without unlabelled examples",
            "Set a share of the unseen domain apart: split(unseen=..., unlabelled=0.5).",
        )


@objectives.register(
    "divdis",
    summary="Heads that fit the labels and are independent of each other on unlabelled examples",
    paper="Lee et al. 2023, arXiv 2202.03418",
    search={"penalty_weight": ("log", 1e-1, 1e2), "prior_weight": ("choice", [0.0, 0.1, 1.0, 10.0])},
)
class DivDis(Objective):
    """Cross-entropy of K heads + weights times mean mutual information of pairs and divergence from a prior.

    heads         K, at least two
    diversity     "mi" (mutual information) or "l1"
    reduction     "mean" over pairs of heads, or "closest": each head against the one most like it, see `pairwise`
    prior_weight  of KL(mean prediction on the unlabelled examples || label_prior), averaged over heads
    label_prior   C shares, or None for those of the training labels
    choice        head of the result: "mean" of the logits, "validation", "last" or a number
    """

    needs_unlabelled = True

    def __init__(
        self,
        heads: int = 2,
        diversity: str = "mi",
        penalty_weight: float = 10.0,
        prior_weight: float = 10.0,
        label_prior: Sequence[float] | None = None,
        choice: str | int = "mean",
        reduction: Reduction = "mean",
    ):
        super().__init__()
        if heads < 2:
            raise InputError("heads", f"are {heads}", "Give at least two.")
        check_weights(penalty_weight, prior_weight)
        check_choice(choice, heads)
        check_reduction(reduction)
        self.heads, self.choice, self.label_prior = heads, choice, label_prior
        self.penalty_weight, self.prior_weight = penalty_weight, prior_weight
        self.pair_loss, self.diversity, self.reduction = pair_loss(diversity), diversity, reduction

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        return with_heads(build(), self.heads)

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.prior = LabelPrior(self.label_prior, classes)

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(model, Hypotheses)
        require_unlabelled("divdis", batch)
        risk = labelled_risk(model.all_logits(batch.x), batch)
        logits = full_precision(model.all_logits(batch.unlabelled))
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = torch.softmax(logits, -1)
            penalty = pairwise(self.pair_loss, probabilities, self.reduction)
            prior = prior_divergence(probabilities, self.prior(batch)).mean()
        total = risk + self.penalty_weight * penalty + self.prior_weight * prior
        return Loss(total, {"risk": risk, "penalty": penalty, "prior": prior})

    def finish(self, stage: Stage) -> None:
        choose_hypothesis(stage, self.choice)


def check_weights(*weights: float) -> None:
    """Raise `InputError` for a weight below 0 or not finite."""
    for weight in weights:
        if not 0 <= weight < float("inf"):
            raise InputError("weight", f"is {weight}", "Give a finite number from 0.")
