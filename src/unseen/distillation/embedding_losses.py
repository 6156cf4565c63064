"""Losses between a student's embeddings, a teacher's, and those of texts: each can be used alone.

All take student (N, D), teacher (N, D), texts (C, D) and labels, (N,) int64 or (N, C) shares, and give a scalar and
a dict of diagnostics. Embeddings may have any length: they are scaled to 1. No gradient reaches the teacher or texts.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from unseen.distillation.teachers import check_embeddings, unit
from unseen.errors import InputError, nearest

Diagnostics = dict[str, Tensor]


class EmbeddingLoss(Protocol):
    """A loss of embeddings and what it lets one see, see the module's first lines."""

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]: ...


class CosineAlignment:
    """-weight mean cos(student, teacher) - (1 - weight) mean cos(student, text of the label), in [-1, 1].

    weight  lambda of the paper, in [0, 1]: 1 imitates images alone, 0 texts alone

    Addepalli et al. 2024, arXiv 2310.08255, equation 2. Labels given as shares (CutMix) weigh the texts' terms.
    """

    def __init__(self, weight: float = 0.5):
        if not 0 <= weight <= 1:
            raise InputError("weight", f"is {weight}", "Give lambda in [0, 1], such as 0.5.")
        self.weight = weight

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        student, teacher, texts = prepared(student, teacher, texts, labels)
        image = (student * teacher).sum(1).mean()
        text = ((student @ texts.T) * shares_of(labels, len(texts))).sum(1).mean()
        total = -self.weight * image - (1 - self.weight) * text
        return total, {"image cosine": image.detach(), "text cosine": text.detach()}


class ClassTextCE:
    """Cross-entropy of student texts^T / temperature against the labels: L_cls.

    Li et al. 2023, arXiv 2307.03135, section 3; temperature > 0.
    """

    def __init__(self, temperature: float = 0.07):
        self.temperature = _checked(temperature)

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        student, teacher, texts = prepared(student, teacher, texts, labels)
        logits = student @ texts.T / self.temperature
        right = logits.argmax(1) == _classes(labels)
        return cross_entropy(logits, labels), {"accuracy": right.float().mean()}


class EmbeddingMSE:
    """Mean over examples of |student - teacher|^2, both of length 1: 2 - 2 cos, in [0, 4] (L_mse).

    lengths  "unit", or "kept": mean of log(1 + |student - teacher|^2 / 10) of the embeddings as they come

    Li et al. 2023, arXiv 2307.03135, section 3; the second form is the official code's alternative.
    """

    def __init__(self, lengths: Literal["unit", "kept"] = "unit"):
        if lengths not in ("unit", "kept"):
            raise InputError(f"lengths {lengths!r}", "are not known", nearest(lengths, ("unit", "kept")))
        self.lengths = lengths

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        scaled, target, _ = prepared(student, teacher, texts, labels)
        cosine = (scaled * target).sum(1).mean().detach()
        if self.lengths == "unit":
            return (scaled - target).square().sum(1).mean(), {"cosine": cosine}
        distances = (student - teacher.detach()).square().sum(1)
        return torch.log1p(distances / 10).mean(), {"cosine": cosine}


class CrossModelInfoNCE:
    """Each student embedding finds its teacher's among the batch, and each teacher's its student's (L_im-cst).

    (CE(S V^T / t) + CE(V S^T / t)) / 2 with positives on the diagonal, at least two examples.

    temperature  t > 0
    symmetric    False: students find their teachers, the first term alone

    Li et al. 2023, arXiv 2307.03135, section 3; van den Oord et al. 2018, arXiv 1807.03748.
    """

    def __init__(self, temperature: float = 0.07, symmetric: bool = True):
        self.temperature, self.symmetric = _checked(temperature), symmetric

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        student, teacher, _ = prepared(student, teacher, texts, labels)
        check_several(student)
        logits = student @ teacher.T / self.temperature
        own = torch.arange(len(student), device=student.device)
        total = cross_entropy(logits, own)
        if self.symmetric:
            total = (total + cross_entropy(logits.T, own)) / 2
        return total, {"found": (logits.argmax(1) == own).float().mean()}


class TopKTextKL:
    """KL(teacher || student) over each image's k texts nearest to the teacher, at one temperature (L_vlalign).

    k                  texts an image, from 2; all of them where there are fewer
    temperature        > 0, divides the cosines of both
    filter_misaligned  leave out images whose nearest text, for the teacher, is not their label's; 0 if all are

    Li et al. 2023, arXiv 2307.03135, section 3.
    """

    def __init__(self, k: int = 256, temperature: float = 0.07, filter_misaligned: bool = True):
        if k < 2:
            raise InputError("k", f"is {k}", "Give at least 2 texts: one has no distribution.")
        self.k, self.temperature, self.filter_misaligned = k, _checked(temperature), filter_misaligned

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        student, teacher, texts = prepared(student, teacher, texts, labels)
        divergence = text_divergence(student, teacher, texts, self.k, self.temperature)
        if not self.filter_misaligned:
            return divergence.mean(), {"kept": torch.ones((), device=student.device)}
        kept = ((teacher @ texts.T).argmax(1) == _classes(labels)).float()
        return (divergence * kept).sum() / kept.sum().clamp(min=1), {"kept": kept.mean()}


class CaptionContrast:
    """Each student embedding finds its image's own caption among the batch's (L_cap).

    The embeddings of the teacher that it takes are those of captions, one an image. Captions of other images of the
    same class are no negatives: they are left out, so that a batch of one class gives 0. At least two examples.

    temperature  > 0, divides the cosines; 1 is what the official code does

    Li et al. 2023, arXiv 2307.03135, section 3.
    """

    def __init__(self, temperature: float = 0.07):
        self.temperature = _checked(temperature)

    def __call__(
        self, student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        student, captions, _ = prepared(student, teacher, texts, labels)
        check_several(student)
        classes, own = _classes(labels), torch.arange(len(student), device=student.device)
        others = (classes.unsqueeze(1) == classes) & (own.unsqueeze(1) != own)
        logits = (student @ captions.T / self.temperature).masked_fill(others, -torch.inf)
        return cross_entropy(logits, own), {"found": (logits.argmax(1) == own).float().mean()}


def text_divergence(student: Tensor, teacher: Tensor, texts: Tensor, k: int, temperature: float) -> Tensor:
    """(N,) KL(teacher || student) over the k texts nearest to the teacher, all embeddings of length 1."""
    said, top = (teacher @ texts.T).topk(min(k, len(texts)), dim=1)
    imitated = (student @ texts.T).gather(1, top)
    return kl_div(
        log_softmax(imitated / temperature, 1),
        log_softmax(said / temperature, 1),
        reduction="none",
        log_target=True,
    ).sum(1)


def prepared(
    student: Tensor, teacher: Tensor, texts: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of length 1, the teacher's and the texts' without gradient.

    Raises `InputError` for numbers of dimensions or rows that differ, rows without a direction, labels outside texts.
    """
    check_embeddings("student's embeddings", student)
    check_embeddings("teacher's embeddings", teacher, student.shape[1])
    check_embeddings("text embeddings", texts, student.shape[1])
    if not len(student) == len(teacher) == len(labels):
        raise InputError(
            "batch",
            f"has {len(student)} embeddings of the student, {len(teacher)} of the teacher and {len(labels)} labels",
            "Give one of each for every example.",
        )
    check_labels(labels, len(texts))
    return unit(student), unit(teacher.detach()), unit(texts.detach())


def check_labels(labels: Tensor, texts: int) -> None:
    """Raise `InputError` for labels that have no text among `texts`, or shares of another number of classes."""
    if labels.dim() == 2 and labels.is_floating_point():
        if labels.shape[1] != texts:
            raise InputError(
                "labels", f"share {labels.shape[1]} classes, not {texts}", "Give one text a class."
            )
    elif labels.dim() != 1 or labels.is_floating_point():
        raise InputError(
            "labels", f"have shape {tuple(labels.shape)}", "Give (N,) integers or (N, C) shares."
        )
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < texts:
        raise InputError(
            "labels",
            f"go from {int(labels.min())} to {int(labels.max())}, but there are {texts} texts",
            f"Number classes from 0 to {texts - 1}, in the order of the texts.",
        )


def check_several(embeddings: Tensor) -> None:
    """Raise `InputError` for fewer than two rows, which nothing contrasts with."""
    if len(embeddings) < 2:
        raise InputError(
            "batch", "has one example, which nothing contrasts with", "Give at least two examples."
        )


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """(N, C) shares of labels (N,), or the shares themselves."""
    return labels if labels.dim() == 2 else torch.nn.functional.one_hot(labels, classes).float()


def _classes(labels: Tensor) -> Tensor:
    return labels if labels.dim() == 1 else labels.argmax(1)


def _checked(temperature: float) -> float:
    if not temperature > 0:
        raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 0.07.")
    return temperature
