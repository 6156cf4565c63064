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
        if not len(images):
            raise InputError("images", "are none", "Give at least one.")
        check_unit("image features", images)
        return images.float()
    return image_features(clip, images)


def check_labels(subject: str, labels: Tensor, count: int, classes: int) -> Tensor:
    """The labels (count,) themselves; raises unless there is one an image, each a number of a class."""
    if labels.shape != (count,):
        raise InputError(subject, f"are {len(labels)} for {count} images", "Give one an image.")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(
            subject,
            f"lie in {labels.min().item()}..{labels.max().item()}",
            f"Number the classes from 0 to {classes - 1}.",
        )
    return labels
