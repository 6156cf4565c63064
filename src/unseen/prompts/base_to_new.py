"""Base-to-new judgement: accuracy on tuned-on classes, on unseen ones, and when both must be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.measures.calibration import calibration_error
from unseen.networks.dual_encoder import DualEncoder
from unseen.prompts.features import check_labels, features_of
from unseen.prompts.text import check_names
from unseen.prompts.zero_shot_ood import Prompts

Examples = tuple[Tensor, Tensor]
"""Images or features (N, D) of length 1, and labels (N,), indices into the names of their own group."""


@dataclass(frozen=True)
class Judgement:
    """Accuracies in [0, 1] and calibration errors of one set of prompts.

    base, new            among the names of their own group, as is the custom
    harmonic             harmonic mean of the two
    joint_base, joint_new
                         among all names of both groups (the generalized setting)
    base_error, new_error
                         expected calibration error among the names of the own group
    """

    base: float
    new: float
    harmonic: float
    joint_base: float
    joint_new: float
    base_error: float
    new_error: float


class BaseToNew:
    """Judges prompts on test images of base classes and of new ones; images are encoded once.

    Raises `InputError` for no images, a base class among the new ones, and labels that are no numbers of names.
    """

    def __init__(
        self,
        clip: DualEncoder,
        base: Examples,
        base_names: Sequence[str],
        new: Examples,
        new_names: Sequence[str],
    ):
        self.scale = clip.logit_scale
        self.base_names = check_names("base names", base_names)
        self.new_names = check_names("new names", new_names)
        both = sorted(set(base_names) & set(new_names))
        if both:
            raise InputError("new names", f"hold the base class {both[0]!r}", "Give other classes.")
        self.base = _encoded(clip, "base", base, self.base_names)
        self.new = _encoded(clip, "new", new, self.new_names)

    @torch.no_grad()
    def __call__(self, prompts: Prompts) -> Judgement:
        known, others = prompts.encode(self.base_names), prompts.encode(self.new_names)
        everything = torch.cat([known, others])
        own = [self._probabilities(*pair) for pair in ((self.base[0], known), (self.new[0], others))]
        labels = [self.base[1], self.new[1]]
        accuracy = [_accuracy(p, y) for p, y in zip(own, labels, strict=True)]
        joint_base = _accuracy(self._probabilities(self.base[0], everything), labels[0])
        joint_new = _accuracy(self._probabilities(self.new[0], everything), labels[1] + len(known))
        errors = [calibration_error(p.cpu().numpy(), y.cpu()) for p, y in zip(own, labels, strict=True)]
        base, new = accuracy
        return Judgement(base, new, harmonic_mean(base, new), joint_base, joint_new, *errors)

    def _probabilities(self, images: Tensor, texts: Tensor) -> Tensor:
        return torch.softmax(self.scale * images @ texts.to(images).T, 1)


def _encoded(clip: DualEncoder, part: str, examples: Examples, names: Sequence[str]) -> Examples:
    features = features_of(clip, examples[0])
    return features, check_labels(f"{part} labels", examples[1], len(features), len(names))


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n), 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels.to(probabilities.device)).double().mean())
