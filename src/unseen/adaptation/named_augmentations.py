"""Augmentations by name, so that a specification such as "cotta(augment='augmix')" can say which."""

from __future__ import annotations

from functools import partial

from unseen.adaptation.augmentations import Augment, augment_images
from unseen.adaptation.augmix import augmix
from unseen.errors import InputError, nearest

AUGMENTATIONS: dict[str, Augment] = {
    "images": augment_images,
    "images-unmirrored": partial(augment_images, flip=False),
    "augmix": augmix,
    "augmix-unmirrored": partial(augmix, flip=False),
}
"""For images; the unmirrored ones for digits, letters and all that has a left and a right."""


def find_augmentation(augment: str | Augment) -> Augment:
    """The augmentation of that name, or the given function itself: (inputs, generator) to inputs.

    Raises InputError for an unknown name.
    """
    if callable(augment):
        return augment
    if augment not in AUGMENTATIONS:
        raise InputError(f"augment {augment!r}", "is not known", nearest(augment, AUGMENTATIONS))
    return AUGMENTATIONS[augment]
