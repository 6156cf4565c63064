"""Image features that are computed once: prompts and detectors never touch pixels after that."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.objectives.mixing import check_unit


@torch.no_grad()
def image_features(clip: DualEncoder, images: Tensor | Iterable[Tensor], *, batch_size: int = 256) -> Tensor:
    """(N, D) float32 features of length 1 of images (N, ...), or of an iterable of such batches.

    Raises `InputError` for no images, and for features of length zero or NaN.
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    parts = [normalize(clip.encode_image(batch).float(), dim=-1) for batch in batches if len(batch)]
    if not parts:
        raise InputError("images", "are none", "Give at least one.")
    features = torch.cat(parts)
    check_unit("image features", features)
    return features


def features_of(clip: DualEncoder, images: Tensor | Iterable[Tensor]) -> Tensor:
    """The same for images or for what already are features: a matrix (N, D), whose rows must be of length 1."""
    if isinstance(images, Tensor) and images.dim() == 2:
        check_unit("image features", images)
        return images.float()
    return image_features(clip, images)
