"""Imitating a teacher's embeddings as an objective: what update rules and averaging work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unseen.distillation.cutmix import CutMix
from unseen.distillation.embedding_losses import CaptionContrast, EmbeddingLoss
from unseen.distillation.environments import Environments
from unseen.distillation.teachers import Teacher
from unseen.networks import Network
from unseen.objectives import Loss, Objective
from unseen.objectives.example_weights import Table
from unseen.shifts import Batch

Augment = Callable[[Any, torch.Generator], Any]
"""Inputs (B, ...) of clean examples to other views of them."""


class EmbeddingObjective(Objective):
    """A weighted sum of losses between the embeddings of student and teacher, and those of the classes' texts.

    terms    name -> (factor, loss)
    teacher  asked about the very views that the student sees, or, when it caches, known by the clean examples of
             `remember`, whatever the student sees of them
    texts    (C, D)
    augment  what the student sees of an example; None: what the data give
    mix      after that; a teacher that caches does not know mixed images
    captions (N, D) the teacher's embeddings of a caption for each example of `remember`, by ids: what
             `CaptionContrast` reads

    The network's featurizer must give embeddings (B, D). The teacher is asked once a batch, in `prepare`: an update
    rule that evaluates a batch twice asks no more.
    """

    several_views = True
    texts: Tensor

    def __init__(
        self,
        terms: Mapping[str, tuple[float, EmbeddingLoss]],
        teacher: Teacher,
        texts: Tensor,
        *,
        augment: Augment | None = None,
        mix: CutMix | None = None,
        captions: Tensor | None = None,
    ):
        super().__init__()
        self.terms, self._teacher, self.augment, self.mix = dict(terms), teacher, augment, mix
        self.register_buffer("texts", texts)
        self.known, self.captions = Table(), None
        if captions is not None:
            self.captions = Table()
            self.captions.fill(captions, texts.device)

    def remember(self, data: Environments) -> None:
        """Ask a teacher that caches about all examples, as the data give them; others are asked as they come."""
        self._teacher.check_count(len(data))
        if self._teacher.cache:
            found = [self._teacher.images(batch.x, batch.ids).cpu() for batch in data.in_order()]
            self.known.fill(torch.cat(found), self.texts.device)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        if self.augment is not None:
            batch = replace(batch, x=self.augment(batch.x, generator))
        if self.mix is not None:
            batch = self.mix.prepare(batch, len(self.texts), generator)
        teacher = self.known.of(batch) if self._teacher.cache else self._teacher.images(batch.x)
        x = {"student": batch.x, "teacher": teacher.to(batch.y.device)}
        if self.captions is not None:
            x["captions"] = self.captions.of(batch)
        return replace(batch, x=x)  # type: ignore[arg-type]

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(batch.x, dict)
        embeddings = model.featurizer(batch.x["student"])
        parts: dict[str, Tensor] = {}
        total = embeddings.new_zeros(())
        for name, (factor, loss) in self.terms.items():
            imitated = "captions" if isinstance(loss, CaptionContrast) else "teacher"
            value, diagnostics = loss(embeddings, batch.x[imitated], self.texts, batch.y)
            total = total + factor * value
            parts[name] = value
            parts |= {f"{name}, {key}": found for key, found in diagnostics.items()}
        return Loss(total, parts)
