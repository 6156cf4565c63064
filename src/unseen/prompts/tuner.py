"""Prompt tuning with a few labelled images of known classes, judged on classes that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.func import functional_call

from unseen.averaging.local_mean_teacher import LocalMeanTeacher
from unseen.errors import InputError, TrainingDiverged
from unseen.prompts.base_to_new import BaseToNew, Judgement
from unseen.prompts.features import check_labels, features_of
from unseen.prompts.learnt import LearntPrompts
from unseen.prompts.negative_labels import TEMPLATE, encode_names, lemma
from unseen.prompts.regularizers import PromptRegularizer, PromptStart, PromptStep
from unseen.prompts.text import PromptableEncoder, Tokens, check_names


@dataclass(frozen=True)
class Epoch:
    """`loss` is the mean over the epoch's steps; `judged` is there after epochs that were judged."""

    epoch: int
    loss: float
    judged: Judgement | None = None


class PromptTuner:
    """Learns context vectors before the class names; the CLIP is never changed (CoOp: Zhou et al. 2022).

    context       words that the vectors start from, or a number of random ones
    regularizer   such as `ZeroShotPenalty` (KgCoOp) or `UnknownClassRegularizer` (OGEN); None: cross-entropy
    teacher       recent contexts whose mean the tuned one is pulled to, on the batch's images, over the known names
                  and those of the regularizer (OGEN's self-distillation)
    distillation  weight of the squared distance of student's and teacher's probabilities, mean over images
    SGD with momentum 0.9; one epoch at 1e-5, then `learning_rate` falling to zero along a cosine.
    """

    def __init__(
        self,
        clip: PromptableEncoder,
        class_names: Sequence[str],
        context: str | int = "a photo of a",
        regularizer: PromptRegularizer | None = None,
        *,
        teacher: LocalMeanTeacher | None = None,
        distillation: float = 1.0,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 0.002,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ):
        self.class_names = check_names("class names", class_names)
        for name, count in (("epochs", epochs), ("batch_size", batch_size)):
            if count < 1:
                raise InputError(name, f"is {count}", "Give a whole number from 1.")
        if not 0 < learning_rate < math.inf:
            raise InputError("learning_rate", f"is {learning_rate}", "Give a positive number, such as 0.002.")
        if not 0 <= distillation < math.inf:
            raise InputError("distillation", f"is {distillation}", "Give 0 or a positive number.")
        self.clip, self.regularizer, self.teacher = clip, regularizer, teacher
        self.prompts = LearntPrompts(clip, context, seed=seed)
        self.distillation, self.epochs, self.batch_size = distillation, epochs, batch_size
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed
        self.history: list[Epoch] = []

    def fit(
        self,
        images: Tensor | Iterable[Tensor],
        labels: Tensor,
        *,
        judge: BaseToNew | None = None,
        judged_epochs: Sequence[int] | None = None,
    ) -> Self:
        """Tune on images or features (N, D) of length 1 and labels (N,), indices into the class names.

        judge          base and new classes to be judged by; it decides nothing
        judged_epochs  epochs (from 1) after which that happens; None: the last alone
        Raises `InputError` for what cannot be learnt from, `TrainingDiverged` for a loss that is not finite.
        """
        features = features_of(self.clip, images)
        labels = check_labels("labels", labels.to(features.device), len(features), len(self.class_names))
        self._check_names_apart(judge)
        extra = () if self.regularizer is None else self.regularizer.names
        tokens = self.clip.embed_tokens([*self.class_names, *extra])
        if self.regularizer is not None:
            zero_shot = encode_names(self.clip, [*self.class_names, *extra], (TEMPLATE,))
            self.regularizer.to(features.device).setup(
                PromptStart(features, labels, zero_shot, len(self.class_names))
            )
        if self.teacher is not None:
            self.teacher.setup(steps=self.epochs)
        trained = [self.prompts.context]
        if self.regularizer is not None:
            trained += [p for p in self.regularizer.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trained, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay
        )  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)
        last = [self.epochs] if judged_epochs is None else judged_epochs
        self.history = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # dropout of the regularizer
            for epoch in range(self.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = self._rate(epoch)
                teacher, total = self._teacher_texts(tokens), 0.0
                for rows in torch.randperm(len(labels), generator=generator).split(self.batch_size):
                    rows = rows.to(features.device)
                    texts = self.prompts(tokens)
                    known, others = texts.split([len(self.class_names), len(extra)])
                    step = PromptStep(
                        features[rows],
                        labels[rows],
                        known,
                        others,
                        self.clip.logit_scale,
                        epoch / self.epochs,
                        generator,
                    )
                    loss = step.cross_entropy if self.regularizer is None else self.regularizer(step)
                    if teacher is not None:
                        loss = loss + self.distillation * self._distance(features[rows], texts, teacher)
                    optimizer.zero_grad()
                    loss.backward(inputs=trained)  # no gradient is left in the CLIP
                    optimizer.step()
                    total += float(loss.detach()) * len(rows)
                require_finite_loss(total, epoch, self.learning_rate)
                if self.teacher is not None:
                    self.teacher.observe(epoch, self.prompts, None)
                judged = judge(self.prompts) if judge is not None and epoch + 1 in last else None
                self.history.append(Epoch(epoch + 1, total / len(labels), judged))
        return self

    @torch.no_grad()
    def predict_proba(self, images: Tensor | Iterable[Tensor], names: Sequence[str] | None = None) -> Tensor:
        """(N, C) probabilities of the class names, or of any others, under the tuned prompt."""
        texts = self.prompts.encode(self.class_names if names is None else names)
        return torch.softmax(self.clip.logit_scale * features_of(self.clip, images) @ texts.T, 1)

    def predict(self, images: Tensor | Iterable[Tensor], names: Sequence[str] | None = None) -> Tensor:
        """(N,) int64 index of the most probable name."""
        return self.predict_proba(images, names).argmax(1)

    def _rate(self, epoch: int) -> float:
        if epoch == 0 and self.epochs > 1:
            return min(1e-5, self.learning_rate)
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    @torch.no_grad()
    def _teacher_texts(self, tokens: Tokens) -> Tensor | None:
        state = None if self.teacher is None else self.teacher.result()
        if state is None:
            return None
        return functional_call(self.prompts, state, (tokens,))

    def _distance(self, images: Tensor, texts: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (torch.softmax(self.clip.logit_scale * images @ t.T, 1) for t in (texts, teacher))
        return (ours - theirs).square().sum(1).mean()

    def _check_names_apart(self, judge: BaseToNew | None) -> None:
        """Names that the regularizer takes for unknown must be no known ones, nor, unless it says so, judged ones."""
        if self.regularizer is None:
            return
        unknown = {lemma(name): name for name in self.regularizer.names}
        for name in self.class_names:
            if lemma(name) in unknown:
                raise InputError(
                    "unknown names", f"hold the known class {name!r}", "Give names of other classes alone."
                )
        if judge is None or self.regularizer.knows_judged_names:
            return
        for name in judge.new_names:
            if lemma(name) in unknown:
                raise InputError(
                    "unknown names",
                    f"hold {name!r}, a new class that the tuner is judged by",
                    "Give names independent of it, or allow the leak with knows_judged_names=True.",
                )


def require_finite_loss(loss: float, epoch: int, learning_rate: float) -> None:
    """Raise `TrainingDiverged` for a sum of losses of an epoch (from 0) that is not finite."""
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} in epoch {epoch + 1}: lower learning_rate={learning_rate}"
        )
