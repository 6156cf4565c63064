"""Teachers: dual encoders that are only asked, or the embeddings that they once gave."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.modes import evaluating
from unseen.networks.zero_shot import TEMPLATES
from unseen.shifts.batch import Inputs, map_tensors

LOGIT_SCALE = 100.0
"""What multiplies cosines of a teacher that does not say: CLIP's own."""


class Teacher:
    """A dual encoder under query access: evaluation mode, no gradient, every query counted.

    encoder      anything with `encode_image` (N, ...) -> (N, D) and `encode_text` list of N texts -> (N, D);
                 nothing of it is changed, and no module of a student ever holds it
    prepare      from images as the data give them to what `encode_image` takes; None: as they are
    cache        remember image embeddings by the ids of examples: an id that was asked before costs no query
    logit_scale  multiplies cosines to give logits, > 0; None: the encoder's own, or 100

    image_queries, text_queries
                 how many images and texts the encoder has been given

    Remembered embeddings belong to one set of examples, seen without augmentation: an id that comes back with
    other content is an `InputError`.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        prepare: Callable[[Any], Any] | None = None,
        cache: bool = True,
        logit_scale: float | None = None,
    ):
        for method in ("encode_image", "encode_text"):
            if not callable(getattr(encoder, method, None)):
                raise InputError(
                    f"teacher {type(encoder).__name__}",
                    f"has no method {method}",
                    "Give an object with encode_image and encode_text, or Teacher.from_embeddings(images, texts).",
                )
        self._encoder: Any = encoder
        self._prepare, self.cache = prepare, cache
        self._start(getattr(encoder, "logit_scale", LOGIT_SCALE) if logit_scale is None else logit_scale)

    @classmethod
    def of(cls, teacher: Any) -> Teacher:
        """A teacher as it is, or an encoder as one."""
        return teacher if isinstance(teacher, Teacher) else cls(teacher)

    @classmethod
    def from_embeddings(
        cls, images: Tensor, texts: Tensor | None = None, *, logit_scale: float = LOGIT_SCALE
    ) -> Self:
        """A teacher that has answered already: images (N, D) in the order of the data, texts (C, D) of the classes."""
        check_embeddings("teacher's image embeddings", images)
        if texts is not None:
            check_embeddings("teacher's text embeddings", texts, images.shape[1])
        teacher = cls.__new__(cls)
        teacher._encoder, teacher._prepare, teacher.cache = None, None, True
        teacher._start(logit_scale)
        teacher._images = images.detach().float()
        teacher.class_embeddings = None if texts is None else texts.detach().float()
        return teacher

    def _start(self, logit_scale: Any) -> None:
        self.logit_scale = float(logit_scale)
        if not 0 < self.logit_scale < math.inf:
            raise InputError("logit_scale", f"is {self.logit_scale}", "Give a positive number, such as 100.")
        self.image_queries = self.text_queries = 0
        self._images: Tensor | None = None
        self.class_embeddings: Tensor | None = None
        self._remembered: dict[int, tuple[int, Tensor]] = {}

    @property
    def precomputed(self) -> bool:
        """Whether it holds embeddings alone and cannot be asked anything new."""
        return self._encoder is None

    @property
    def dimension(self) -> int | None:
        """D of precomputed embeddings; None for an encoder, whose first answer tells."""
        return None if self._images is None else self._images.shape[1]

    def images(self, x: Inputs, ids: Tensor | None = None) -> Tensor:
        """(N, D) embeddings of N images, of whatever length the encoder gives.

        x    what the encoder takes, or `prepare`: a tensor or a dict of tensors
        ids  (N,) int64 of the examples: what they are remembered by, and where precomputed ones are found
        """
        if self.precomputed:
            return self._looked_up(ids)
        if not self.cache or ids is None:
            return self._ask(x)
        marks = _marks(x)
        new = [i for i, key in enumerate(ids.tolist()) if not self._knows(key, marks[i])]
        if new:
            asked = self._ask(map_tensors(lambda rows: rows[new], x)).cpu()
            for i, embedding in zip(new, asked, strict=True):
                self._remembered[int(ids[i])] = (marks[i], embedding)
        return torch.stack([self._remembered[key][1] for key in ids.tolist()]).to(ids.device)

    def texts(self, texts: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """(C, D) of length 1: embeddings of texts, or of class names put into templates with a place {}.

        Embeddings are scaled to length 1, averaged over templates and scaled again (Radford et al. 2021).
        """
        if self.precomputed:
            raise InputError(
                "teacher", "is made of embeddings and cannot read new texts", "Give their embeddings (C, D)."
            )
        if isinstance(texts, str) or not texts:
            raise InputError("texts", f"are {texts!r}", "Give a list of at least one text.")
        if isinstance(templates, str) or not templates or not all("{}" in t for t in templates):
            raise InputError(
                "templates", f"are {templates!r}", f"Give sentences with {{}}, such as {TEMPLATES[0]!r}."
            )
        total = torch.zeros(())
        for template in templates:
            with _evaluation(self._encoder):
                found = self._encoder.encode_text([template.format(text) for text in texts]).float()
            self.text_queries += len(texts)
            check_embeddings("teacher's text embeddings", found)
            total = total.to(found.device) + unit(found)
        check_embeddings("teacher's text embeddings, averaged over templates", total)
        return unit(total).clone()

    def check_count(self, count: int) -> None:
        """Raise `InputError` when there are not as many precomputed image embeddings as examples."""
        if self._images is not None and len(self._images) != count:
            raise InputError(
                "teacher's image embeddings",
                f"are {len(self._images)}, but the data have {count} examples",
                "Give one a row of the data, in their order.",
            )

    def _looked_up(self, ids: Tensor | None) -> Tensor:
        assert self._images is not None
        if ids is None or int(ids.min()) < 0 or int(ids.max()) >= len(self._images):
            raise InputError(
                "ids",
                f"do not name rows of the {len(self._images)} precomputed embeddings",
                "Give numbers of rows, from 0.",
            )
        return self._images[ids.cpu()].to(ids.device)

    def _knows(self, key: int, mark: int) -> bool:
        if key in self._remembered and self._remembered[key][0] != mark:
            raise InputError(
                f"example {key}",
                "is not what the teacher remembers under this id",
                "Set cache=False for augmented images, and take a new Teacher for other data.",
            )
        return key in self._remembered

    def _ask(self, x: Inputs) -> Tensor:
        with _evaluation(self._encoder):
            found = self._encoder.encode_image(x if self._prepare is None else self._prepare(x)).float()
        self.image_queries += len(found)
        check_embeddings("teacher's image embeddings", found)
        return found


def check_embeddings(subject: str, embeddings: Tensor, dimension: int | None = None) -> None:
    """Raise `InputError` unless embeddings are (N, D) numbers with a direction, D being `dimension` if given."""
    if embeddings.dim() != 2:
        raise InputError(subject, f"have shape {tuple(embeddings.shape)}", "Give one row an example: (N, D).")
    if dimension is not None and embeddings.shape[1] != dimension:
        raise InputError(
            subject, f"have {embeddings.shape[1]} dimensions, not {dimension}", "Give those of one space."
        )
    lengths = embeddings.norm(dim=1)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        row = int((~(torch.isfinite(lengths) & (lengths > 0))).nonzero()[0])
        raise InputError(
            subject,
            f"have no direction in row {row} (its length is {float(lengths[row].detach())})",
            "Leave such rows out.",
        )


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    return nn.functional.normalize(embeddings, dim=-1)


def _marks(x: Inputs) -> list[int]:
    """A checksum of each row's content."""
    if isinstance(x, dict):
        return [hash(row) for row in zip(*map(_marks, x.values()), strict=True)]
    return [zlib.crc32(row.numpy()) for row in x.detach().cpu().contiguous()]


@contextlib.contextmanager
def _evaluation(encoder: Any) -> Iterator[None]:
    """No gradient and, for a module, evaluation mode."""
    modes = evaluating(encoder) if isinstance(encoder, nn.Module) else contextlib.nullcontext()
    with modes, torch.no_grad():
        yield
