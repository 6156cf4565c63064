"""Zero-shot detection of unfamiliar images with a CLIP and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from unseen.detection.concept_matching import concept_matching
from unseen.detection.negative_labels import negative_label_score
from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.prompts.features import features_of
from unseen.prompts.negative_labels import TEMPLATE, check_negatives, encode_names
from unseen.prompts.text import check_names


class Prompts(Protocol):
    """Learnt prompts: `unseen.prompts.LearntPrompts`, `DistributionAwarePrompts`."""

    def encode(self, names: Sequence[str], *, negative: bool = False) -> Tensor:
        """(len(names), D) features of length 1, without gradient."""
        ...


class ZeroShotOOD:
    """Scores how familiar images are (higher = more familiar) and classifies them by the class names.

    clip         its image and text encoders; never changed
    negatives    names far from all classes, from `mine_negative_labels`; needed by score "neglabel"
    score        "mcm": largest softmax probability over class names (Ming et al. 2022); "neglabel": the share of
                 the class names beside the negatives (Jiang et al. 2024)
    groups       of negatives, each with a softmax of its own ("neglabel")
    temperature  of the cosines; None takes 1 for "mcm" and 1 / clip.logit_scale for "neglabel", as the papers do
    templates    sentences with {} for the name, averaged; report how much the scores depend on them
    prompts      learnt prompts in place of templates
    """

    def __init__(
        self,
        clip: DualEncoder,
        class_names: Sequence[str],
        negatives: Sequence[str] | None = None,
        *,
        score: Literal["mcm", "neglabel"] = "mcm",
        groups: int = 100,
        temperature: float | None = None,
        templates: Sequence[str] = (TEMPLATE,),
        prompts: Prompts | None = None,
        seed: int = 0,
    ):
        if score not in ("mcm", "neglabel"):
            raise InputError("score", f"is {score!r}", "Give 'mcm' or 'neglabel'.")
        if temperature is not None and not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number.")
        self.clip, self.kind, self.groups, self.seed = clip, score, groups, seed
        self.class_names = check_names("class names", class_names)
        self.negatives: tuple[str, ...] = ()
        if score == "neglabel":
            if not negatives:
                raise InputError("negatives", "are missing", "Mine some: mine_negative_labels(...).")
            self.negatives = check_negatives(self.class_names, negatives)
            if not 1 <= groups <= len(self.negatives):
                raise InputError(
                    "groups",
                    f"are {groups} for {len(self.negatives)} negative name(s)",
                    "Give from 1 to the number of negatives.",
                )
        self.temperature = temperature or (1.0 if score == "mcm" else 1 / clip.logit_scale)

        def encode(names: Sequence[str], negative: bool) -> Tensor:
            if prompts is not None:
                return prompts.encode(names, negative=negative)
            return encode_names(clip, names, templates)

        self.known = encode(self.class_names, False)
        self.far = encode(self.negatives, True) if self.negatives else None

    @torch.no_grad()
    def score(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """(N,) in [0, 1], higher = more familiar; images, batches of images, or features (N, D) of length 1."""
        features = features_of(self.clip, images)
        if self.far is None:
            return concept_matching(features @ self.known.T, self.temperature)
        return negative_label_score(
            features @ self.known.T,
            features @ self.far.T,
            1 / self.temperature,
            groups=self.groups,
            seed=self.seed,
        )

    @torch.no_grad()
    def predict(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """(N,) int64 index of the nearest class name; negatives are no classes."""
        return (features_of(self.clip, images) @ self.known.T).argmax(1)
