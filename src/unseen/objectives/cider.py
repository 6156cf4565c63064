"""CIDer: train on complete and on masked inputs, and let the complete view teach the masked one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.causal_head import CausalHead, class_prototypes
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.stages import Stage
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.missing_features import MissingMode, RandomFeatureMissing


def feature_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of one minus the cosine of features (B, D) and their fixed targets."""
    return (1 - nn.functional.cosine_similarity(student, teacher.detach(), dim=-1)).mean()


def attention_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(teacher) || softmax(student)) of scores (..., T), the teacher fixed.

    Scores are taken before modalities or padding are masked, as in the published code.
    """
    target = teacher.detach().log_softmax(-1)
    return (target.exp() * (target - student.log_softmax(-1))).sum(-1).mean()


def reconstruction_loss(decoded: Tensor, original: Tensor, missing: Tensor) -> Tensor:
    """Smooth L1 of decoded and original features (B, T, D) at the missing positions (B, T), mean over values.

    Zero where nothing is missing.
    """
    losses = nn.functional.smooth_l1_loss(decoded, original.detach(), reduction="none").mean(-1)
    return (losses * missing).sum() / missing.sum().clamp(min=1)


@objectives.register(
    "cider",
    summary="Missing inputs: masked and complete views, the complete one teaches features, attention and inputs",
    paper="Zhong et al. 2025, arXiv 2506.10452",
    search={
        "feature": ("uniform", 0.0, 1.0),
        "attention": ("uniform", 0.0, 1.0),
        "reconstruction": ("uniform", 0.0, 1.0),
    },
)
class CIDer(Objective):
    """Cross-entropy of the complete and of a randomly masked view, plus self-distillation from the first to the
    second: `feature` x `feature_distillation`, `attention` x `attention_distillation` and `reconstruction` x
    `reconstruction_loss`. Weights of 0 leave masking as plain augmentation.

    rate, mode, keep  of `RandomFeatureMissing`; a rate of None tosses a coin for each position

    The network `multimodal` names all three levels; any other has its features alone, and the levels that it
    does not name are left out, with an UnseenWarning. With a `CausalHead` the prototypes are set before training.

    The published training takes two steps a batch, one on each view, and does not clear the first's gradients
    before the second; here it is one step on the sum.
    """

    several_views = True

    def __init__(
        self,
        feature: float = 0.5,
        attention: float = 0.1,
        reconstruction: float = 0.6,
        rate: float | None = None,
        mode: MissingMode = "element",
        keep: tuple[int, ...] = (),
    ):
        super().__init__()
        self.weights = {"feature": feature, "attention": attention, "reconstruction": reconstruction}
        for name, value in self.weights.items():
            if not value >= 0:
                raise InputError(name, f"is {value}", "Give a weight from 0.")
        if rate == 1:
            raise InputError("rate", "is 1", "Nothing would be left to learn from; give less.")
        self.mask = RandomFeatureMissing(rate, mode, keep=keep)

    def begin(self, stage: Stage) -> None:
        """Class prototypes and frequencies of the training rows for a `CausalHead`."""
        if isinstance(stage.network.head, CausalHead):
            batch = stage.batch(stage.rows("train"))
            set_prototypes(stage.network.head, batch.x, batch.y)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Inputs (B, ...) to (B, 2, ...): the complete and the masked view of each example."""
        masked, _ = self.mask(batch.x, generator)
        return replace(batch, x=_stacked(batch.x, masked))

    def forward(self, model: Network, batch: Batch) -> Loss:
        count = len(batch)
        complete = map_tensors(lambda tensor: tensor[:, 0], batch.x)
        masked = map_tensors(lambda tensor: tensor[:, 1], batch.x)
        named = _outputs(model, _joined(complete, masked), levels=any(self.weights.values()))
        first, second = model.head(named["features"]).split(count)
        parts = {
            "complete": example_losses(first, batch).mean(),
            "masked": example_losses(second, batch).mean(),
        }
        teacher = map_tensors(lambda tensor: tensor[:count], named)
        student = map_tensors(lambda tensor: tensor[count:], named)
        if self.weights["feature"]:
            parts["feature"] = feature_distillation(student["features"], teacher["features"])
        unnamed = [
            level for level in ("attention", "reconstruction") if self.weights[level] and level not in named
        ]
        if unnamed:
            warnings.warn(
                f"objective 'cider': the network does not name {' and '.join(unnamed)}, which is left out; "
                "the network multimodal does",
                UnseenWarning,
                stacklevel=2,
            )
        if self.weights["attention"] and "attention" in named:
            parts["attention"] = attention_distillation(student["attention"], teacher["attention"])
        if self.weights["reconstruction"] and "reconstruction" in named:
            assert isinstance(complete, dict) and isinstance(masked, dict)
            losses = [
                reconstruction_loss(
                    student["reconstruction"][name],
                    teacher["originals"][name],
                    _differing(value, masked[name]),
                )
                for name, value in complete.items()
            ]
            parts["reconstruction"] = torch.stack(losses).sum()
        total = torch.stack([self.weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return Loss(total, parts)


def set_prototypes(head: CausalHead, x: Any, labels: Tensor) -> None:
    """Class means and frequencies of training inputs {name: (N, T, ...)} and labels (N,) into a head."""
    vocabulary = max((head.sizes[name] for name, v in x.items() if not v.is_floating_point()), default=0)
    prototypes = class_prototypes(x, labels, head.out_features, vocabulary)
    head.set_prototypes(prototypes, torch.bincount(labels, minlength=head.out_features).float())


def _stacked(complete: Inputs, masked: Inputs) -> Inputs:
    if isinstance(complete, dict):
        return {name: _stacked(value, masked[name]) for name, value in complete.items()}  # type: ignore[index,misc]
    return torch.stack([complete, masked], 1)  # type: ignore[list-item]


def _joined(complete: Inputs, masked: Inputs) -> Inputs:
    if isinstance(complete, dict):
        return {name: _joined(value, masked[name]) for name, value in complete.items()}  # type: ignore[index,misc]
    return torch.cat([complete, masked])  # type: ignore[list-item]


def _differing(complete: Tensor, masked: Tensor) -> Tensor:
    """(B, T) where a position was filled; one that held the fill all along needs no reconstruction."""
    apart = complete != masked
    return apart.flatten(2).any(-1) if apart.dim() > 2 else apart


def _outputs(model: Network, x: Inputs, levels: bool) -> dict[str, Any]:
    named: Any = getattr(model.featurizer, "outputs", None)
    return named(x) if levels and named is not None else {"features": model.featurizer(x)}
