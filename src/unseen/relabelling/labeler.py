"""Denoising in-context learning: a judge is asked whether a model's label is right, and if not, which likely one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks.feature_cache import content_hash
from unseen.relabelling.questions import Questions, Verifier, ask
from unseen.relabelling.transition import check_probabilities
from unseen.shifts.sampling import derive_seed

Retrieval = Literal["probability", "feature", "random"]
Candidates = Literal["transition", "softmax", "random"]


@dataclass(frozen=True)
class Support:
    """M labelled exemplars. They carry human labels: what is learnt without labels concerns the target alone.

    images (M, ...) as the model takes them; labels (M,) int64; names: C class names, which need not differ.
    """

    images: Tensor
    labels: Tensor
    names: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or not len(self.labels):
            raise InputError(
                "support",
                f"has {len(self.images)} images, {len(self.labels)} labels",
                "Give as many of both.",
            )
        if self.labels.dim() != 1 or self.labels.is_floating_point():
            raise InputError(
                "support labels",
                f"are {self.labels.dtype} of shape {tuple(self.labels.shape)}",
                "Give (M,) int64.",
            )
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.names):
            raise InputError(
                "support labels", "have a class without a name", "Number classes as their names."
            )


@dataclass(frozen=True)
class RelabelResult:
    """What came of N images.

    label       (N,) int64: the model's own where it was accepted, else the candidate that the judge finds likeliest
    score       (N,) the judge's probability of that label (zero where the accepted one could not be asked about)
    accepted    (N,) bool: the model's label was found right, and no other was asked about
    candidates  (N, K) int64, the model's likeliest first; -1 where there are fewer than K
    n_queries   (N,) int64: questions asked
    predicted   (N,) int64: the model's label
    """

    label: Tensor
    score: Tensor
    accepted: Tensor
    candidates: Tensor
    n_queries: Tensor
    predicted: Tensor

    @property
    def changed(self) -> Tensor:
        """(N,) bool: the label is not the model's."""
        return self.label != self.predicted

    def report(self, labels: Tensor) -> dict[str, float]:
        """Accuracy before and after, labels corrected and destroyed (counts), and questions an image.

        labels (N,) are the true ones; raises `InputError` for another number of them.
        """
        if labels.shape != self.label.shape:
            raise InputError(
                "labels",
                f"have shape {tuple(labels.shape)} for {len(self.label)} images",
                "Give one an image.",
            )
        right, was = self.label == labels, self.predicted == labels
        return {
            "before": float(was.double().mean()),
            "after": float(right.double().mean()),
            "corrected": int((right & ~was).sum()),
            "destroyed": int((~right & was).sum()),
            "accepted": float(self.accepted.double().mean()),
            "queries per image": float(self.n_queries.double().mean()),
        }


class DenoisingInContextLabeler:
    """Labels images by a model, and asks a verifier about labels that may be wrong.

    A label y with probability p is accepted when (q_y + p) / 2 >= `accept`, q_c being the verifier's mean probability
    of class c over `n_exemplars` exemplars. Else the verifier is asked about every candidate, and the likeliest wins.
    Candidates are the `top_n` true classes that are most often taken for y (column y of the transition matrix),
    ordered by the model's probability; y is always among them.

    model       images (N, ...) to logits (N, C)
    transition  T (C, C) of `estimate_transition`, rows summing to one
    accept      in [0, 1], or None to ask about everything
    retrieval   exemplars of a class "probability": those to which the model gives a probability of y most like the
                image's; "feature": those of the nearest features by cosine; "random"
    candidates  "transition"; "softmax" (the model's likeliest classes, which the official code in fact uses) and
                "random" are ablations
    missing     classes without an exemplar: "raise", or "drop" them from the candidates
    features    images to features (N, D), for retrieval; by default the featurizer of a `Network`
    Raises `InputError` for options and matrices that cannot be used.
    Machine Vision Therapy (Huang et al. 2024, arXiv 2312.02546), stage 2.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        verifier: Verifier,
        support: Support,
        transition: Tensor,
        top_n: int = 6,
        n_exemplars: int = 3,
        accept: float | None = 0.6,
        retrieval: Retrieval = "probability",
        *,
        candidates: Candidates = "transition",
        missing: Literal["raise", "drop"] = "raise",
        features: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ):
        classes = len(support.names)
        if transition.dim() != 2 or transition.shape[0] != transition.shape[1]:
            raise InputError(
                "transition", f"has shape {tuple(transition.shape)}", "Give a square matrix (C, C)."
            )
        if len(transition) != classes:
            raise InputError("transition", f"is of {len(transition)} classes", f"There are {classes} names.")
        check_probabilities("transition", transition)
        if top_n < 2:
            raise InputError(
                "top_n", f"is {top_n}", "Give at least 2: one candidate leaves nothing to choose."
            )
        if n_exemplars < 1:
            raise InputError("n_exemplars", f"is {n_exemplars}", "Give at least 1.")
        if accept is not None and not 0 <= accept <= 1:
            raise InputError("accept", f"is {accept}", "Give a number in [0, 1], or None to ask about all.")
        for name, value, choices in (
            ("retrieval", retrieval, ("probability", "feature", "random")),
            ("candidates", candidates, ("transition", "softmax", "random")),
            ("missing", missing, ("raise", "drop")),
        ):
            if value not in choices:
                raise InputError(f"{name} {value!r}", "is not known", f"Use {', '.join(choices)}.")
        self.shown = torch.bincount(support.labels, minlength=classes) > 0
        absent = (~self.shown).nonzero().flatten().tolist()
        if absent and missing == "raise":
            raise InputError(
                f"class {support.names[absent[0]]!r}",
                f"is a candidate without a support image ({len(absent)} such classes)",
                'Give an image of each class, or missing="drop".',
            )
        if int(self.shown.sum()) < 2:
            raise InputError("support", "has exemplars of one class alone", "Give at least two classes.")
        self.model, self.verifier, self.support, self.transition = model, verifier, support, transition
        self.top_n, self.n_exemplars, self.accept = min(top_n, classes), n_exemplars, accept
        self.retrieval, self.candidates, self.seed, self.batch_size = retrieval, candidates, seed, batch_size
        self.features = features or getattr(model, "featurizer", None)
        if retrieval == "feature" and self.features is None:
            raise InputError("retrieval 'feature'", "has no features", "Give a Network, or features=.")
        self._hashes = {content_hash(image) for image in support.images}

    @torch.no_grad()
    def relabel(self, images: Tensor) -> RelabelResult:
        """Labels of images (N, ...). Raises `InputError` for one that is a support image, and for bad answers."""
        for index, image in enumerate(images):
            if content_hash(image) in self._hashes:
                raise InputError(
                    f"image {index}", "is in the support, too", "Leave exemplars out of the target."
                )
        probs = self._probabilities(images)
        confidence, predicted = probs.max(1)
        candidates = self._candidates(probs, predicted)
        exemplars = self._exemplars(images, probs, predicted)
        every = torch.arange(len(images), device=images.device)
        known = self.shown.to(images.device)[predicted]
        score = images.new_zeros(len(images), candidates.shape[1])
        asked = torch.zeros(candidates.shape, dtype=torch.bool, device=images.device)
        place = (candidates == predicted[:, None]).int().argmax(1)

        def judge(rows: Tensor, columns: Tensor) -> None:
            """Ask about candidate `columns` of images `rows`."""
            score[rows, columns] = self._ask(images, rows, columns, candidates, predicted, exemplars)
            asked[rows, columns] = True

        accepted = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.accept is not None:
            judge(every[known], place[known])
            accepted = known & ((score[every, place] + confidence) / 2 >= self.accept)
        rows, columns = ((candidates >= 0) & ~accepted[:, None] & ~asked).nonzero(as_tuple=True)
        judge(rows, columns)
        likeliest = score.masked_fill(candidates < 0, -1).argmax(1)
        chosen = torch.where(accepted, place, likeliest)
        return RelabelResult(
            label=candidates[every, chosen],
            score=score[every, chosen],
            accepted=accepted,
            candidates=candidates,
            n_queries=asked.sum(1) * self.n_exemplars,
            predicted=predicted,
        )

    def _candidates(self, probs: Tensor, predicted: Tensor) -> Tensor:
        """(N, K) classes, the model's likeliest first, -1 at the end: cut first, then ordered."""
        count, classes = probs.shape
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 1))
        rank = {
            "transition": lambda: self.transition.to(probs)[:, predicted].T.clone(),
            "softmax": lambda: probs.clone(),
            "random": lambda: torch.rand(count, classes, generator=generator).to(probs),
        }[self.candidates]()
        shown = self.shown.to(probs.device)
        rank[:, ~shown] = -1
        rank[torch.arange(count, device=probs.device), predicted] = 2  # always asked about
        rank[:, ~shown] = -1  # unless nothing can be shown of it
        kept = rank.topk(min(self.top_n, int(shown.sum())), 1).indices
        order = probs.gather(1, kept).argsort(dim=1, descending=True, stable=True)
        return kept.gather(1, order)

    def _exemplars(self, images: Tensor, probs: Tensor, predicted: Tensor) -> Tensor:
        """(N, C, n_exemplars) support images of each class for each image, the best first, repeated where few."""
        support, labels = self.support, self.support.labels.to(images.device)
        if self.retrieval == "probability":
            theirs = self._probabilities(support.images)
            top = probs.gather(1, predicted[:, None])
            distance = (theirs[:, predicted].T - top).abs()
        elif self.retrieval == "feature":
            assert self.features is not None
            own, other = (
                torch.nn.functional.normalize(self._in_batches(self.features, x).flatten(1), dim=1)
                for x in (images, support.images)
            )
            distance = 1 - own @ other.T
        else:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))
            distance = torch.rand(len(images), len(labels), generator=generator).to(probs)
        found = torch.zeros(len(images), len(support.names), self.n_exemplars, dtype=torch.int64)
        for c in self.shown.nonzero().flatten().tolist():
            own_rows = (labels == c).nonzero().flatten()
            order = own_rows[distance[:, own_rows].argsort(dim=1, stable=True)].cpu()
            found[:, c] = order[:, torch.arange(self.n_exemplars) % len(own_rows)]
        return found.to(images.device)

    def _ask(
        self,
        images: Tensor,
        rows: Tensor,
        columns: Tensor,
        candidates: Tensor,
        predicted: Tensor,
        exemplars: Tensor,
    ) -> Tensor:
        """Mean answer over exemplars for each pair of an image and a candidate."""
        classes, top = candidates[rows, columns], predicted[rows]
        first = candidates[rows, 0]
        others = torch.where(first == classes, candidates[rows, 1], first)
        shown = self.shown.to(images.device)[top]
        rival = torch.where((classes != top) & shown, top, others)
        k = self.n_exemplars
        names = self.support.names
        questions = Questions(
            images,
            self.support.images.to(images.device),
            rows.repeat_interleave(k),
            exemplars[rows, classes].flatten(),
            exemplars[rows, rival].flatten(),
            [names[c] for c in classes.repeat_interleave(k).tolist()],
            [names[c] for c in top.repeat_interleave(k).tolist()],
        )
        return ask(self.verifier, questions).view(-1, k).mean(1)

    def _probabilities(self, images: Tensor) -> Tensor:
        logits, classes = self._in_batches(self.model, images), len(self.support.names)
        if logits.dim() != 2 or logits.shape[1] != classes:
            problem = f"gives logits of shape {tuple(logits.shape)} for {classes} names"
            raise InputError("model", problem, "Give one logit a class: (N, C).")
        found = logits.softmax(1)
        if found.isnan().any():
            raise InputError("model", "gives logits that are NaN", "Look at images and weights.")
        return found

    def _in_batches(self, function: Callable[[Any], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part) for part in x.split(self.batch_size)])
