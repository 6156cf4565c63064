"""LAPT: prompts for classes and for negative names, tuned on images that were found for the names alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from unseen.errors import InputError, UnseenWarning
from unseen.objectives.mixing import cross_distribution_mix, cross_modal_mix, soft_cross_entropy
from unseen.prompts.features import features_of
from unseen.prompts.label_images import Source, collect_features
from unseen.prompts.learnt import DistributionAwarePrompts
from unseen.prompts.negative_labels import check_negatives, encode_names
from unseen.prompts.text import PromptableEncoder, check_names
from unseen.prompts.tuner import require_finite_loss
from unseen.prompts.zero_shot_ood import ZeroShotOOD

TEMPLATES = (
    "a bad photo of the {}.", "a {} in a video game.", "a origami {}.", "a photo of the small {}.",
    "art of the {}.", "a photo of the large {}.", "itap of a {}.",
)  # fmt: skip
"""The seven that CLIP's authors found best together (Radford et al. 2021), as in the published code."""


class LAPT:
    """Tunes `DistributionAwarePrompts` of K class names and M negative names on labelled image features.

    L = CE of cross-modal mixtures + beta CE of cross-distribution mixtures, over all K + M names in one softmax
    (Zhang et al. 2024, arXiv 2407.08966, equations 6 to 9). Only the two contexts are trained, by SGD with
    Nesterov momentum 0.9 and a cosine schedule; the CLIP is not touched.

    prompts      None makes four context vectors each
    templates    sentences of which one, drawn a step, gives the frozen text that images are mixed with
    cross_modal  alpha of Beta(alpha, alpha) for image and text of one label; 0 leaves the images as they are
    beta         weight of the second term; 0 leaves it out
    alpha        of Beta(alpha, alpha) for image pairs of the second term
    The released code draws a template for each image, and takes min(lambda, 1 - lambda) for the image's share: more
    text than image. Here, as the paper has it, either may have more.
    """

    def __init__(
        self,
        clip: PromptableEncoder,
        class_names: Sequence[str],
        negatives: Sequence[str],
        prompts: DistributionAwarePrompts | None = None,
        *,
        templates: Sequence[str] = TEMPLATES,
        cross_modal: float = 1.0,
        beta: float = 0.3,
        alpha: float = 1.0,
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        self.class_names = check_names("class names", class_names)
        self.negatives = check_negatives(self.class_names, negatives)
        for name, value in (("cross_modal", cross_modal), ("beta", beta)):
            if not 0 <= value < math.inf:
                raise InputError(name, f"is {value}", "Give 0 or a positive number.")
        for name, count in (("epochs", epochs), ("batch_size", batch_size)):
            if count < 1:
                raise InputError(name, f"is {count}", "Give a whole number from 1.")
        if cross_modal and not templates:
            raise InputError(
                "templates", "are none to mix images with", "Give one at least, or cross_modal=0."
            )
        if not 0 < learning_rate < math.inf:
            raise InputError("learning_rate", f"is {learning_rate}", "Give a positive number, such as 0.01.")
        self.clip, self.templates = clip, tuple(templates)
        self.prompts = DistributionAwarePrompts(clip, seed=seed) if prompts is None else prompts
        self.cross_modal, self.beta, self.alpha = cross_modal, beta, alpha
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.losses: list[float] = []
        """Mean loss of each epoch."""

    def fit_from_source(self, source: Source, **options: Any) -> Self:
        """Fit on what `source` (name -> images) gives for every name; options as for `collect_features`."""
        return self.fit(*collect_features(self.clip, [*self.class_names, *self.negatives], source, **options))

    def fit(
        self, images: Tensor | Iterable[Tensor], labels: Tensor, is_negative: Tensor | None = None
    ) -> Self:
        """Fit on images or features (N, D) of length 1, and labels (N,) in [0, K + M), negatives from K on.

        is_negative  (N,) bool, checked against the labels if it is given
        Raises `InputError` for what cannot be learnt from, `TrainingDiverged` for a loss that is not finite; warns of
        batches of one kind.
        """
        features = features_of(self.clip, images)
        labels = labels.to(features.device)
        negative = self._check(features, labels, is_negative)
        batches = math.ceil(len(labels) / self.batch_size)
        rarer = min(int(negative.sum()), int((~negative).sum()))
        if self.beta and rarer < batches:
            warnings.warn(
                f"{rarer} image(s) of one kind for {batches} batches: batches without any are not mixed across",
                UnseenWarning,
                stacklevel=2,
            )
        known_tokens, negative_tokens = map(self.clip.embed_tokens, (self.class_names, self.negatives))
        hand = [
            encode_names(self.clip, [*self.class_names, *self.negatives], (template,))
            for template in (self.templates if self.cross_modal else ())
        ]
        generator = torch.Generator().manual_seed(self.seed)
        contexts = list(self.prompts.parameters())
        optimizer = torch.optim.SGD(
            contexts, lr=self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * batches)
        self.losses = []
        for epoch in range(self.epochs):
            total = 0.0
            for rows in _batches(negative, self.batch_size, generator):
                texts = self.prompts(known_tokens, negative_tokens)
                loss = self._loss(features[rows], labels[rows], negative[rows], texts, hand, generator)
                optimizer.zero_grad()
                loss.backward(inputs=contexts)  # no gradient is left in the CLIP
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
            require_finite_loss(total, epoch, self.learning_rate)
            self.losses.append(total / len(labels))
        return self

    def detector(self, negatives: Sequence[str] | None = None, *, groups: int = 100) -> ZeroShotOOD:
        """Scores by the tuned prompts; `negatives` None takes those of training (the paper: ten times as many)."""
        return ZeroShotOOD(
            self.clip,
            self.class_names,
            self.negatives if negatives is None else negatives,
            score="neglabel",
            groups=groups,
            prompts=self.prompts,
        )

    def _loss(
        self,
        u: Tensor,
        y: Tensor,
        negative: Tensor,
        texts: Tensor,
        hand: list[Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        scale, x = self.clip.logit_scale, u
        if self.cross_modal:
            template = hand[int(torch.randint(len(hand), (1,), generator=generator))]
            x, _ = cross_modal_mix(u, template[y], self.cross_modal, generator)
        loss = cross_entropy(scale * x @ texts.T, y)
        if self.beta and negative.any() and not negative.all():
            targets = one_hot(y, len(texts)).to(u)
            x, soft, _ = cross_distribution_mix(u, targets, negative, self.alpha, generator)
            loss = loss + self.beta * soft_cross_entropy(scale * x @ texts.T, soft).mean()
        return loss

    def _check(self, features: Tensor, labels: Tensor, is_negative: Tensor | None) -> Tensor:
        """(N,) bool: which labels are negative names; raises for what cannot be trained on."""
        known, names = len(self.class_names), len(self.class_names) + len(self.negatives)
        if len(labels) != len(features):
            raise InputError("labels", f"are {len(labels)} for {len(features)} images", "Give one an image.")
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= names:
            raise InputError(
                "labels",
                f"lie in {labels.min().item()}..{labels.max().item()}",
                f"Number classes 0..{known - 1} and negative names {known}..{names - 1}.",
            )
        negative = labels >= known
        if is_negative is not None and not torch.equal(is_negative.bool(), negative):
            wrong = int((is_negative.bool() != negative).sum())
            raise InputError(
                "is_negative",
                f"contradicts {wrong} label(s)",
                f"Negative names have labels from {known} on.",
            )
        if self.beta and (not negative.any() or negative.all()):
            lacking = "negative names" if not negative.any() else "classes"
            raise InputError(
                "images",
                f"hold none of {lacking}: there is nothing to mix across distributions",
                "Give images of both kinds, or beta=0.",
            )
        return negative


def _batches(negative: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of an epoch in random order, with both kinds spread evenly over the batches.

    So a batch lacks one kind only where there are fewer examples of it than batches; it is then not mixed across.
    """
    rows, negative = torch.randperm(len(negative), generator=generator), negative.cpu()
    place = torch.empty(len(rows))
    for kind in (negative[rows], ~negative[rows]):
        count = int(kind.sum())
        place[kind] = (torch.arange(count) + torch.rand(count, generator=generator)) / max(count, 1)
    return list(rows[place.argsort()].split(size))
