"""D-BAT and its relatives: members trained one after the other, each to differ from those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.networks.hypotheses import Members, with_members
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.divdis import check_choice, check_weights, choose_hypothesis, require_unlabelled
from unseen.objectives.diversity import pair_loss, prior_divergence
from unseen.objectives.label_prior import LabelPrior
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "divdis-seq",
    summary="DivDis' loss, minimised by one network after the other",
    paper="Benoit et al. 2024, arXiv 2312.16313",
    preset={"diversity": "mi", "penalty_weight": 10.0, "prior_weight": 10.0},
    search={"penalty_weight": ("log", 1e-1, 1e2)},
)
@objectives.register(
    "d-bat",
    summary="Networks trained one after the other, each to disagree with those before it on unlabelled examples",
    paper="Pagliardini et al. 2023, arXiv 2202.04414",
    search={"penalty_weight": ("log", 1e-4, 1e1)},
)
class SequentialDiversity(Objective):
    """Member k minimises cross-entropy + weight times the mean over m < k of a pair loss with frozen member m.

    The run's steps are shared out evenly: member 1 is trained by cross-entropy, frozen, then member 2, and so
    on; the optimizer forgets its moments between them. Until then the later members are as they were built.

    members       K, at least two
    diversity     pair loss: "d-bat", "d-bat-trained" (event of the member in training), "mi" or "l1"
    prior_weight  of KL(mean prediction of member k on the unlabelled examples || label_prior)
    label_prior   C shares, or None for those of the training labels
    choice        member of the result: "last", "mean" of the logits, "validation" or a number

    With keep="best" the ID validation of the last member decides; earlier members are those of the last step of
    their turn, where the official code also keeps each one's best. Stopping early (`patience`) would stop before the
    last member's turn. Any update rule moves the member in training alone; averaging of weights should begin in the
    last member's share of the steps.
    """

    needs_unlabelled = True
    member_steps: Tensor

    def __init__(
        self,
        members: int = 2,
        diversity: str = "d-bat",
        penalty_weight: float = 1.0,
        prior_weight: float = 0.0,
        label_prior: Sequence[float] | None = None,
        choice: str | int = "last",
    ):
        super().__init__()
        if members < 2:
            raise InputError("members", f"are {members}", "Give at least two.")
        check_weights(penalty_weight, prior_weight)
        check_choice(choice, members)
        self.members, self.choice, self.label_prior = members, choice, label_prior
        self.penalty_weight, self.prior_weight = penalty_weight, prior_weight
        self.pair_loss, self.diversity = pair_loss(diversity), diversity
        self._steps_each: int | None = None

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        return with_members([build() for _ in range(self.members)])

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.prior = LabelPrior(self.label_prior, classes)
        self.register_buffer("member_steps", torch.tensor(1))

    def begin(self, stage: Stage) -> None:
        if stage.steps < self.members:
            raise InputError(
                "steps", f"are {stage.steps} for {self.members} members", "Give each member some steps."
            )
        self.member_steps.fill_(stage.steps // self.members)

    def in_training(self, step: int) -> int:
        """Number of the member that update `step` trains, from 0."""
        if self._steps_each is None:  # read once: it lies on the device, and never changes within a run
            self._steps_each = int(self.member_steps)
        return min(step // self._steps_each, self.members - 1)

    def resets_optimizer_at(self, step: int) -> bool:
        return step > 0 and self.in_training(step) != self.in_training(step - 1)

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(model, Members)
        require_unlabelled(self.diversity, batch)
        index = self.in_training(batch.step)
        risk = example_losses(model.member_logits(index, batch.x), batch).mean()
        if index == 0:
            return Loss(risk, {"risk": risk})
        for earlier in range(index):
            model.freeze(earlier)
        with torch.no_grad():
            earlier_logits = [model.member_logits(m, batch.unlabelled) for m in range(index)]
            before = full_precision(torch.stack(earlier_logits)).softmax(-1)
        own = full_precision(model.member_logits(index, batch.unlabelled)).softmax(-1)
        with torch.autocast(own.device.type, enabled=False):
            penalty = self.pair_loss(before, own).mean()
            total, parts = risk + self.penalty_weight * penalty, {"risk": risk, "penalty": penalty}
            if self.prior_weight:
                parts["prior"] = prior_divergence(own, self.prior(batch))
                total = total + self.prior_weight * parts["prior"]
        return Loss(total, parts)

    def finish(self, stage: Stage) -> None:
        choose_hypothesis(stage, self.choice)
