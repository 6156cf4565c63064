"""Open-vocabulary distillation: a small student of a vision-language teacher that names classes it never saw."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unseen.averaging import estimate_batch_statistics, has_batch_statistics
from unseen.distillation.embedding_losses import (
    CaptionContrast,
    ClassTextCE,
    CrossModelInfoNCE,
    EmbeddingLoss,
    EmbeddingMSE,
    TopKTextKL,
    check_labels,
    shares_of,
    text_divergence,
)
from unseen.distillation.embedding_objective import Augment, EmbeddingObjective
from unseen.distillation.environments import Environments
from unseen.distillation.student_training import train_stage
from unseen.distillation.teachers import Teacher, check_embeddings, unit
from unseen.distillation.text_classifier import Embedder, check_features, text_classifier
from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.training.learner import Learner

LOSSES: Mapping[str, float] = {"cls": 1.0, "mse": 1.0, "contrast": 1.0, "vlalign": 1.0}

DEFAULTS: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "batch_size": 128,
    "steps": 3000,
}
"""The official code's for ResNets trained from scratch, with a cosine in place of its two drops of the rate."""


class OpenVocabDistiller:
    """A student whose outputs are embeddings in the teacher's space, so that any text can be a class.

    student          module from inputs to (N, D), D the teacher's dimension; copied, never changed
    teacher          a `Teacher`, an object with encode_image and encode_text, or image embeddings (N, D) in the order
                     of the data
    text_features    (C, D) of the classes learned from, in the order of the labels
    losses           name -> factor: "cls" (`ClassTextCE`), "mse" (`EmbeddingMSE`), "contrast" (`CrossModelInfoNCE`),
                     "vlalign" (`TopKTextKL`), "caption" (`CaptionContrast`)
    captions         for "caption": a text for each example, in the order of the data, which the teacher reads, or
                     their embeddings (N, D)
    k, temperature, filter_misaligned
                     of these losses, see there
    augment          (inputs, generator) -> inputs as the student sees them; the teacher is asked once about the
                     clean examples, or, if it does not cache, in every step about the views that the student sees
    settings         fields of `Learner`: steps, batch_size, optimizer, learning_rate, ...; see `DEFAULTS`

    After `fit`: `model_` (logits of the classes learned from) and `history_`. `zero_shot` gives classifiers of other
    texts. `fit` anew with `start=` and few examples is the paper's few-shot fine-tuning. Texts stay as they are given:
    the paper's optional prompts, learnt together with the student, are not here (`unseen.prompts.PromptTuner` learns
    them for the teacher beforehand).
    Li et al. 2023, arXiv 2307.03135.
    """

    model_: Network
    history_: list[dict[str, Any]]

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        text_features: Tensor,
        losses: Mapping[str, float] = LOSSES,
        *,
        k: int = 256,
        temperature: float = 0.07,
        filter_misaligned: bool = True,
        captions: Tensor | Sequence[str] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **settings: Any,
    ):
        self.student, self.augment, self.seed, self.device = student, augment, seed, torch.device(device)
        self.teacher = (
            Teacher.from_embeddings(teacher) if isinstance(teacher, Tensor) else Teacher.of(teacher)
        )
        check_embeddings("text_features", text_features, self.teacher.dimension)
        self.texts, self.temperature = text_features.detach().float(), temperature
        known: dict[str, EmbeddingLoss] = {
            "cls": ClassTextCE(temperature),
            "mse": EmbeddingMSE(),
            "contrast": CrossModelInfoNCE(temperature),
            "vlalign": TopKTextKL(k, temperature, filter_misaligned),
            "caption": CaptionContrast(temperature),
        }
        for name, factor in losses.items():
            if name not in known:
                raise InputError(f"loss {name!r}", "is not known", nearest(name, known))
            if not 0 <= factor < math.inf:
                raise InputError(f"factor of {name!r}", f"is {factor}", "Give a number from 0.")
        self.terms = {name: (float(factor), known[name]) for name, factor in losses.items() if factor}
        if not self.terms:
            raise InputError("losses", "have no term", f"Give factors of {', '.join(known)}.")
        if (captions is None) != ("caption" not in losses):
            raise InputError(
                "captions",
                "are missing" if captions is None else "are given, but no loss reads them",
                'Give captions and a factor for "caption", or neither.',
            )
        self.captions = None if captions is None else _caption_embeddings(self.teacher, captions)
        self.learner = Learner(**{**DEFAULTS, **settings})
        self.learner.check()

    def fit(self, data: Any, val: Any = None, *, start: nn.Module | None = None) -> Network:
        """Train on labelled examples of the classes of `text_features`; a network in evaluation mode.

        data   see `Environments.of`
        val    held-out examples of the same classes: the best step by them is kept, without them the last
        start  a student to go on from, such as `embedder` of an earlier fit; default the one given first
        """
        environments = Environments.of(data)
        environments.check_labels(len(self.texts))
        if self.captions is not None and len(self.captions) != len(environments):
            raise InputError(
                "captions",
                f"are {len(self.captions)}, but the data have {len(environments)} examples",
                "Give one a row of the data, in their order.",
            )
        student = copy.deepcopy(self.student if start is None else start).to(self.device)
        embedder = student if isinstance(student, Embedder) else Embedder(student)
        self._check_student(embedder, environments)
        network = text_classifier(embedder, self.texts.to(self.device), 1 / self.temperature)
        objective = EmbeddingObjective(
            self.terms,
            self.teacher,
            self.texts.to(self.device),
            augment=self.augment,
            captions=self.captions,
        )
        objective.remember(environments)
        result = train_stage(
            network,
            objective,
            environments,
            None if val is None else Environments.of(val),
            self.learner,
            seed=self.seed,
            enter_training_mode=network.train,
        )
        network.load_state_dict(result.averaged or result.best)
        if result.averaged and has_batch_statistics(network):
            sampler = environments.sampler(self.learner.batch_size, self.seed)
            batches = (environments.batch(sampler.rows(i)) for i in range(min(50, self.learner.steps)))
            estimate_batch_statistics(network, lambda: (batch.to(self.device).x for batch in batches))
        self.model_, self.history_ = network.eval(), result.history
        return network

    @property
    def embedder(self) -> nn.Module:
        """After `fit`: inputs to embeddings (N, D) of length 1."""
        if not hasattr(self, "model_"):
            raise InputError("OpenVocabDistiller", "is not fitted", "Call fit first.")
        return self.model_.featurizer

    def zero_shot(self, texts: Tensor) -> Network:
        """After `fit`: a classifier of other texts (C, D); seen and unseen ones together are the harder setting."""
        return zero_shot(self.embedder, texts, self.temperature)

    def _check_student(self, embedder: Embedder, data: Environments) -> None:
        with torch.no_grad():
            example = data.batch(torch.zeros(1, dtype=torch.int64)).to(self.device)
            found = check_features(embedder.eval().student(example.x)).shape[1]
        if found != self.texts.shape[1] and embedder.projection is None:
            raise InputError(
                "student's output",
                f"has {found} dimensions, the teacher's space {self.texts.shape[1]}",
                f"Make the last layer {self.texts.shape[1]} wide.",
            )


def _caption_embeddings(teacher: Teacher, captions: Tensor | Sequence[str], size: int = 256) -> Tensor:
    """(N, D) of captions as they are, `size` read at once, or of embeddings that are given."""
    if isinstance(captions, Tensor):
        check_embeddings("captions", captions, teacher.dimension)
        return captions.detach().float()
    if isinstance(captions, str) or not captions:
        raise InputError("captions", f"are {captions!r}", "Give a list with a text for each example.")
    parts = [captions[start : start + size] for start in range(0, len(captions), size)]
    return torch.cat([teacher.texts(part) for part in parts])


def zero_shot(student: nn.Module, texts: Tensor, temperature: float = 0.07) -> Network:
    """A classifier: cosines of the student's outputs and texts (C, D), divided by the temperature.

    Weights are the student's own, shared.
    """
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 0.07.")
    embedder = student if isinstance(student, Embedder) else Embedder(student)
    return text_classifier(embedder, texts, 1 / temperature).eval()


class Support(NamedTuple):
    """A few labelled examples as a student sees them: embeddings (S, D) of length 1 and labels (S,)."""

    features: Tensor
    labels: Tensor


@torch.no_grad()
def support_of(
    student: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    augment: Augment | None = None,
    views: int = 10,
    generator: torch.Generator | None = None,
) -> Support:
    """Embeddings of examples (S, ...), each the mean of `views` augmented ones where there is an augmentation.

    The student is put into evaluation mode.
    """
    student.eval()
    if augment is None:
        return Support(unit(student(x)), labels)
    if generator is None or views < 1:
        raise InputError("support", "has augmented views", "Give views from 1 and a generator.")
    mean = torch.stack([unit(student(augment(x, generator))) for _ in range(views)]).mean(0)
    return Support(unit(mean), labels)


def few_shot_retrieval(
    support: Support,
    features: Tensor,
    texts: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 5.5,
    temperature: float = 0.07,
) -> Tensor:
    """Logits (N, C) of features (N, D): s t / temperature + alpha sum over the class's support of exp(-beta (1 - s f)).

    texts (C, D); all are scaled to length 1. Nothing is trained.
    alpha        weight of the support, from 0
    beta         sharpness, from 0
    Zhang et al. 2022 (Tip-Adapter), arXiv 2207.09519, as used in Li et al. 2023, arXiv 2307.03135.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0:
            raise InputError(name, f"is {value}", "Give a number from 0.")
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 0.07.")
    check_embeddings("features", features)
    check_embeddings("text embeddings", texts, features.shape[1])
    check_embeddings("support's features", support.features, features.shape[1])
    if len(support.labels) != len(support.features):
        raise InputError(
            "support",
            f"has {len(support.features)} features and {len(support.labels)} labels",
            "Give one of each for every example.",
        )
    check_labels(support.labels, len(texts))
    features = unit(features)
    nearness = torch.exp(-beta * (1 - features @ unit(support.features).T))
    remembered = nearness @ shares_of(support.labels, len(texts)).to(nearness)
    return features @ unit(texts).T / temperature + alpha * remembered


class Consistency(NamedTuple):
    """How alike two image spaces are.

    neighbours  share of each image's k nearest other images that both spaces name, mean over images, in [0, 1]
    divergence  mean KL(teacher || student) over each image's k texts nearest to the teacher, from 0
    agreement   share of images whose nearest text is the same in both
    """

    neighbours: float
    divergence: float
    agreement: float


@torch.no_grad()
def space_consistency(
    student: Tensor, teacher: Tensor, texts: Tensor, k: int = 10, temperature: float = 0.07
) -> Consistency:
    """How well a student's embeddings (N, D) keep the neighbourhoods of a teacher's (N, D) and their relation to texts.

    texts (C, D); 2 <= k < N. The measures are a reconstruction: the paper's own are not published.
    """
    check_embeddings("student's embeddings", student)
    check_embeddings("teacher's embeddings", teacher, student.shape[1])
    check_embeddings("text embeddings", texts, student.shape[1])
    if len(student) != len(teacher):
        raise InputError("embeddings", f"are {len(student)} and {len(teacher)}", "Give the same images.")
    if not 2 <= k < len(student):
        raise InputError("k", f"is {k} for {len(student)} images", "Give 2 to one less than there are.")
    student, teacher, texts = unit(student), unit(teacher), unit(texts)
    shared = (_neighbours(student, k).unsqueeze(2) == _neighbours(teacher, k).unsqueeze(1)).any(2)
    agreement = (student @ texts.T).argmax(1) == (teacher @ texts.T).argmax(1)
    divergence = text_divergence(student, teacher, texts, k, temperature).mean()
    return Consistency(float(shared.float().mean()), float(divergence), float(agreement.float().mean()))


def _neighbours(embeddings: Tensor, k: int) -> Tensor:
    """(N, k) numbers of the nearest other rows, by cosine."""
    cosine = embeddings @ embeddings.T
    return cosine.fill_diagonal_(-torch.inf).topk(k, dim=1).indices
