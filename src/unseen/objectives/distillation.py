"""Distillation of several teachers into one featurizer with a linear head for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.networks.hypotheses import SharedHeads, with_heads
from unseen.networks.modes import evaluating
from unseen.objectives.whole_data import WholeData, minimise, outputs_of
from unseen.objectives.worst_group import squared_errors
from unseen.shifts import Batch


class MultiHeadDistiller:
    """R heads on one featurizer, of which each learns what its teacher says; labels are never read.

    teachers     R networks of as many outputs
    student      the network whose featurizer learns; the heads are new, drawn from torch's global generator as
                 layers are, and lie where the student lies
    targets      "hard": the teachers' classes; "soft": their probabilities
    temperature  divides the logits of teachers and heads for soft targets; the loss is multiplied by its square
                 (Hinton et al. 2015)
    regression   outputs are numbers, imitated by squared error
    """

    def __init__(
        self,
        teachers: Sequence[Network],
        student: Network,
        targets: Literal["hard", "soft"] = "hard",
        temperature: float = 1.0,
        regression: bool = False,
    ):
        check_targets(targets, temperature)
        classes = [teacher.classes for teacher in teachers]
        if not teachers or set(classes) != {student.classes}:
            raise InputError(
                "teachers", f"have {classes} classes and the student {student.classes}", "Give equal numbers."
            )
        self.teachers, self.kind, self.temperature, self.regression = (
            teachers,
            targets,
            temperature,
            regression,
        )
        self.network = student
        if len(teachers) > 1:
            self.network = with_heads(student, len(teachers)).to(student.head.weight.device)

    @property
    def heads(self) -> list[nn.Linear]:
        """The R heads, as layers that share the weights of `network`."""
        own = self.network.head
        pairs = (
            zip(own.weights, own.biases, strict=True)
            if isinstance(own, SharedHeads)
            else [(own.weight, own.bias)]
        )
        found = []
        for weight, bias in pairs:
            head = nn.Linear(self.network.features, self.network.classes, device="meta")
            head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            found.append(head)
        return found

    def logits(self, x: Any) -> Tensor:
        """(R, B, C) outputs of every head."""
        features = self.network.featurizer(x)
        head = self.network.head
        return head.all_logits(features) if isinstance(head, SharedHeads) else head(features).unsqueeze(0)

    def taught(self, data: Any) -> Tensor:
        """(R, N, C) what the teachers say of data (see `WholeData.of`): one-hot classes, probabilities or, for
        regression, their outputs."""
        data = WholeData.of(data)
        outputs = torch.stack([outputs_of(teacher, data) for teacher in self.teachers])
        if self.regression:
            return outputs
        if self.kind == "soft":
            return torch.softmax(outputs / self.temperature, -1)
        return nn.functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).to(outputs.dtype)

    def loss(self, batch: Batch, targets: Tensor) -> Tensor:
        """Mean over heads and examples of the loss against targets (R, B, C) of the batch's examples."""
        logits = self.logits(batch.x)
        if self.regression:
            return squared_errors(logits, targets).mean()
        scale = self.temperature if self.kind == "soft" else 1.0
        return -scale * scale * (targets * torch.log_softmax(logits / scale, -1)).sum(-1).mean()

    def fit(
        self,
        data: Any,
        *,
        steps: int,
        learning_rate: float,
        l2: float = 0.0,
        batch_size: int | None = None,
        shares: Tensor | None = None,
        generator: torch.Generator,
    ) -> Network:
        """Train featurizer and heads, see `minimise`; the network answers with the mean of its heads."""
        device = next(self.network.parameters()).device
        data = WholeData.of(data, device)
        taught = self.taught(data).to(device)
        minimise(
            self.network,
            lambda batch: self.loss(batch, taught[:, batch.ids]),
            data,
            steps=steps,
            learning_rate=learning_rate,
            l2=l2,
            batch_size=batch_size,
            shares=shares,
            generator=generator,
        )
        return self.network

    def agreement(self, data: Any) -> list[float]:
        """Share of the examples on which each head and its teacher name the same class; for regression the
        share of the teacher's variance that the head explains."""
        data = WholeData.of(data)
        with evaluating(self.network):
            heads = outputs_of(self.logits, data)
        teachers = torch.stack([outputs_of(teacher, data) for teacher in self.teachers])
        if self.regression:
            error, variance = (heads - teachers).square().mean((1, 2)), teachers.var((1, 2), correction=0)
            return (1 - error / variance.clamp(min=1e-12)).tolist()
        return (heads.argmax(-1) == teachers.argmax(-1)).double().mean(1).tolist()


def check_targets(targets: str, temperature: float) -> None:
    """Raise `InputError` for targets that there are not, or a temperature not above 0."""
    if targets not in ("hard", "soft"):
        raise InputError(f"targets {targets!r}", "are not known", nearest(targets, ("hard", "soft")))
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 1.")


def average_heads(heads: Sequence[nn.Linear], *, rescale: bool = False) -> nn.Linear:
    """A linear layer with the mean weight and bias of several.

    rescale  give all of them the mean norm first: where temperatures differ, the mean would follow the hottest
    """
    weights, biases = (torch.stack([getattr(h, name).detach() for h in heads]) for name in ("weight", "bias"))
    if rescale:
        norms = weights.flatten(1).norm(dim=1)
        factors = norms.mean() / norms.clamp(min=1e-12)
        weights, biases = weights * factors.view(-1, 1, 1), biases * factors.view(-1, 1)
    mean = nn.Linear(weights.shape[2], weights.shape[1], device="meta")
    mean.weight, mean.bias = nn.Parameter(weights.mean(0)), nn.Parameter(biases.mean(0))
    return mean
