"""Training images for a list of names from any source: a generator, a retrieval service, a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.prompts.features import image_features
from unseen.prompts.negative_labels import TEMPLATE, encode_names

Source = Callable[[str], Tensor]
"""A name -> images of it, (n, ...) as the encoder takes them."""


def collect_features(
    clip: DualEncoder,
    names: Sequence[str],
    source: Source,
    *,
    agreement: int | None = None,
    duplicates: float = 0.9999,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) of length 1 of what the source gives for each name, and labels (N,), indices into `names`.

    agreement   keep an image only if its own name is among this many names nearest to it (CLIP's agreement);
                None keeps all
    duplicates  an image is left out when its cosine with an earlier one of its name is above this
    Raises `InputError` for a name of which no image is left.
    """
    if agreement is not None and agreement < 1:
        raise InputError(
            "agreement", f"is {agreement}", "Give a number of nearest names, 1 or more, or None."
        )
    texts = encode_names(clip, names, (TEMPLATE,))
    features, labels = [], []
    for label, name in enumerate(names):
        found = image_features(clip, source(name))
        if agreement is not None:
            cosines = found @ texts.T
            found = found[(cosines > cosines[:, [label]]).sum(1) < agreement]
        alike = torch.tril(found @ found.T > duplicates, diagonal=-1).any(1)
        found = found[~alike]
        if not len(found):
            raise InputError(
                f"images of {name!r}",
                "are none that agree with the name",
                "Let the source give more images, or raise `agreement`.",
            )
        features.append(found)
        labels.append(torch.full((len(found),), label))
    return torch.cat(features), torch.cat(labels)
