"""OGEN's regularizer: borders to unknown classes are trained on generated features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unseen.errors import InputError
from unseen.objectives.mixing import check_unit
from unseen.prompts.generator import ClassConditionalGenerator
from unseen.prompts.regularizers import PromptRegularizer, PromptStart, PromptStep
from unseen.prompts.text import check_names


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and standard deviation (C, D) of each class's image features; the latter 0 for a single image."""

    mean: Tensor
    deviation: Tensor


def class_statistics(features: Tensor, labels: Tensor, classes: int) -> ClassStatistics:
    """Statistics of features (N, D) of length 1: of the few training images, never of more than these.

    Raises `InputError` for a class without an image.
    """
    check_unit("image features", features)
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero().squeeze(1).tolist()
    if missing or len(counts) > classes:
        problem = f"hold none of class(es) {missing}" if missing else f"go up to {len(counts) - 1}"
        raise InputError("labels", problem, f"Give images of each class 0..{classes - 1}.")
    mean = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    mean = mean / counts.unsqueeze(1)
    square = torch.zeros_like(mean).index_add(0, labels, (features - mean[labels]).square())
    return ClassStatistics(mean, (square / counts.unsqueeze(1)).sqrt())


class UnknownClassRegularizer(PromptRegularizer):
    """Makes features (A) of the image's class from its k neighbours, (B) of the neighbours from the image, and
    (C) of the k unknown names nearest to the class, and trains prompt and generator on them.

    First `warm_up` of the epochs: the generator alone, D (MSE_A + MSE_B). Then D (MSE_A + MSE_B) + CE_A / 4
    + CE_B / (4 k) + CE_C / (2 k) + CE of the real images / 4, as the released code weighs these means, with D the
    size of the space: D times a mean over it is the squared distance. The released code's MSE after the warm-up is
    to a second pass that differs in dropout alone; here it stays that to real features.

    unknown_names       of classes without images; independent of those that the tuner is judged by
    class_stats         None computes them of the training images
    noise               features of neighbours are mean + u * deviation: "gaussian" draws u for each feature,
                        "uniform" one u in [0, 1) a batch, which shifts all in one direction (the released code)
    knows_judged_names  allows unknown names that the tuner is judged by (as the released code has it: a leak of
                        the label space)
    Zang et al. 2024, arXiv 2401.15914.
    """

    def __init__(
        self,
        generator: ClassConditionalGenerator,
        unknown_names: Sequence[str],
        class_stats: ClassStatistics | None = None,
        *,
        warm_up: float = 0.2,
        noise: Literal["gaussian", "uniform"] = "gaussian",
        knows_judged_names: bool = False,
    ):
        super().__init__()
        self.names = check_names("unknown names", unknown_names)
        if len(self.names) < generator.k:
            raise InputError(
                "unknown names",
                f"are {len(self.names)}, fewer than the {generator.k} neighbours of a class",
                "Give more names or a smaller k.",
            )
        if not 0 <= warm_up < 1:
            raise InputError("warm_up", f"is {warm_up}", "Give a share of the epochs in [0, 1).")
        if noise not in ("gaussian", "uniform"):
            raise InputError("noise", f"is {noise!r}", "Give 'gaussian' or 'uniform'.")
        self.generator, self.given, self.warm_up, self.noise = generator, class_stats, warm_up, noise
        self.knows_judged_names = knows_judged_names

    def setup(self, start: PromptStart) -> None:
        k = self.generator.k
        if start.known < k + 1:
            raise InputError(
                "known classes",
                f"are {start.known}, but a class needs {k} neighbours",
                "Give more classes or a smaller k.",
            )
        if start.images.shape[1] != self.generator.dim:
            raise InputError(
                "generator",
                f"makes features of size {self.generator.dim}, but images have {start.images.shape[1]}",
                "Give dim the size of the joint space.",
            )
        found = self.given or class_statistics(start.images, start.labels, start.known)
        if found.mean.shape != (start.known, self.generator.dim):
            raise InputError(
                "class_stats",
                f"are of shape {tuple(found.mean.shape)}",
                f"Give ({start.known}, {self.generator.dim}): a row a known class.",
            )
        self.mean, self.deviation = found.mean.to(start.images), found.deviation.to(start.images)
        direction = torch.nn.functional.normalize(self.mean, dim=1)
        alike = (direction @ direction.T).fill_diagonal_(-torch.inf)
        self.neighbours = alike.topk(k, dim=1).indices  # (C, k)
        known, unknown = start.texts[: start.known], start.texts[start.known :]
        self.nearest_unknown = (known @ unknown.T).topk(k, dim=1).indices  # (C, k)

    def forward(self, step: PromptStep) -> Tensor:
        own, near = step.labels.unsqueeze(1), self.neighbours[step.labels]
        fixed = step.known.detach()  # else the prompt would collapse to make generation easy
        sampled = self._sample(near, step.generator)
        image, name = step.images.unsqueeze(1), fixed[own]
        made = self.generator(name, fixed[near], sampled)
        made_near = self.generator(fixed[near], name, image)
        size = self.generator.dim
        distance = size * ((made - image).square().mean() + (made_near - sampled).square().mean())
        if step.progress < self.warm_up:
            return distance
        unknown = self.nearest_unknown[step.labels]
        made_unknown = self.generator(step.extra[unknown], step.known[own], image)
        k = self.generator.k
        return (
            distance
            + 0.25 * _cross_entropy(step.scale, made, step.known, own)
            + 0.25 / k * _cross_entropy(step.scale, made_near, step.known, near)
            + 0.5 / k * _cross_entropy(step.scale, made_unknown, step.extra, unknown)
            + 0.25 * step.cross_entropy
        )

    def _sample(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """(B, k, D) features of classes (B, k)."""
        mean, deviation = self.mean[classes], self.deviation[classes]
        if self.noise == "uniform":
            u = torch.rand(mean.shape[-1], generator=generator)
        else:
            u = torch.randn(mean.shape, generator=generator)
        return mean + u.to(mean) * deviation


def _cross_entropy(scale: float, made: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """Of features (B, Q, D) among texts (C, D), labels (B, Q)."""
    return cross_entropy((scale * made @ texts.T).flatten(0, 1), labels.flatten())
