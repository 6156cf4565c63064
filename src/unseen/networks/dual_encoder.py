"""Dual encoders: images and texts in one space. What teachers, prompts and zero-shot detectors read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class DualEncoder(Protocol):
    """Anything that embeds images and texts alike: an open_clip or transformers CLIP, a small one of your own.

    `logit_scale` multiplies cosines to give logits (CLIP's exponentiated temperature, about 100).
    """

    logit_scale: float

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, D) embeddings of N images as the encoder takes them; their length is free."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), D) embeddings; their length is free."""
        ...
