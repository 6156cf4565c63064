"""Which generated examples are kept: by a score, such as how well an image fits its prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.extrapolation.generators import Examples
from unseen.extrapolation.proposals import DomainSpec

Scorer = Callable[[Examples, DomainSpec, str], Any]
"""(n examples, domain, class name) -> n scores, higher is better."""


class ImageTextScorer:
    """Scores images by how well they fit the prompts they were made of: the cosine to the nearest one, in [-1, 1].

    encoder  a dual encoder such as CLIP, `unseen.networks.dual_encoder.dual_encoder(name)`: it has
             encode_image(images) and encode_text(texts), and reads uint8 images (n, C, H, W)
    name     of it, for the manifest
    batch    images at a time

    All images of a cell have the same prompts, so a share to keep suits any encoder; a least cosine is the
    encoder's own (about 0.25 for CLIP).
    """

    def __init__(self, encoder: Any, *, name: str = "", batch: int = 32):
        if batch < 1:
            raise InputError("batch", f"is {batch}", "Give the number of images at a time, from 1.")
        self.encoder, self.batch = encoder, batch
        self.__qualname__ = f"image-text similarity, {name or type(encoder).__name__}"

    @torch.inference_mode()
    def __call__(self, examples: Examples, spec: DomainSpec, cls: str) -> Tensor:
        """(n,) float. Raises `InputError` for texts or rows, and for a domain without prompts of the class."""
        if not isinstance(examples, Tensor) or examples.dim() != 4:
            problem = f"got {'texts' if isinstance(examples, list) else 'rows'}"
            raise InputError(
                "image-text scorer", problem, "Filter images by it, others by a scorer of yours."
            )
        texts = normalize(self.encoder.encode_text(spec.prompts_of(cls)).float(), dim=-1)
        parts = [
            self.encoder.encode_image(part.to(texts.device)).float() for part in examples.split(self.batch)
        ]
        return (normalize(torch.cat(parts), dim=-1) @ texts.T).amax(1).cpu()


class filter_by_score:
    """Keeps examples by a score. Mind that a filter prefers prototypes: look at what it rejects, class by class.

    scorer    see `Scorer`: an `ImageTextScorer`, the probability of the class by a probe, ...
    keep      share, in (0, 1], of each cell's examples that is kept: the best
    at_least  instead, the least score
    """

    def __init__(self, scorer: Scorer, *, keep: float | None = None, at_least: float | None = None):
        if (keep is None) == (at_least is None):
            raise InputError("keep, at_least", "are both given or both missing", "Give one of them.")
        if keep is not None and not 0 < keep <= 1:
            raise InputError("keep", f"is {keep}", "Give a share above 0, at most 1.")
        self.scorer, self.keep, self.at_least = scorer, keep, at_least

    @property
    def facts(self) -> dict[str, Any]:
        name = getattr(self.scorer, "__qualname__", type(self.scorer).__name__)
        return {"scorer": name, "keep": self.keep, "at_least": self.at_least}

    def __call__(self, examples: Examples, spec: DomainSpec, cls: str) -> Tensor:
        """(n,) bool: which examples are kept. Scores that are not numbers count as rejections."""
        scores = torch.as_tensor(self.scorer(examples, spec, cls), dtype=torch.float64).reshape(-1)
        if len(scores) != len(examples):
            raise InputError(
                "scorer", f"gave {len(scores)} scores for {len(examples)} examples", "Give one for each."
            )
        scores = torch.where(scores.isnan(), -math.inf, scores)
        if self.at_least is not None:
            return scores >= self.at_least
        kept = torch.zeros(len(scores), dtype=torch.bool)
        count = math.ceil((self.keep or 1.0) * len(scores))
        kept[scores.argsort(descending=True, stable=True)[:count]] = True
        return kept & (scores > -math.inf)
