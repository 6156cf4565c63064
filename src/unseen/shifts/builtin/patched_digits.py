"""Digits beside coloured patches, each of which tells the digit in training and may be broken elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import Spec, shifts
from unseen.shifts.builtin.digits import DIGITS
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

PIXELS = 64


@shifts.register(
    "patched-digits",
    summary="Digits beside 32 colour patches: each tells the digit, until more and more of them are broken",
    paper="Lin et al. 2024, arXiv 2309.17230 (MultiColorMNIST), on scikit-learn's digits",
)
def patched_digits(
    broken: Sequence[float] = (0.0, 0.7, 0.8, 0.9),
    patches: int = 32,
    noise: float = 0.6,
    test: int = 597,
    seed: int = 0,
) -> Shift:
    """8 x 8 digits and the RGB colours of P patches, float (N, 64 + 3 P), pixels and colours around [0, 1].

    Every patch has a table of ten colours. In a domain, each patch by itself shows, with that domain's
    probability, the colour of a random digit instead of the right one.

    broken   probability a domain, each in [0, 1]: the dial. The first domain, for training, has 1797 - test
             digits; the others show the same `test` digits, which it has not
    patches  P, 1 or more
    noise    standard deviation of Gaussian noise on the pixels: how weak the digit is beside the patches
    seed     of the partition, the colours, the noise and what is broken

    `shown_digits(shift)` is the record of which patch shows what.
    """
    if isinstance(broken, (int, float)) or not len(broken) or len({f"{p:g}" for p in broken}) < len(broken):
        raise InputError("broken", f"is {broken}", "Give a sequence of different values, one per domain.")
    if not all(0 <= p <= 1 for p in broken):
        raise InputError("broken", f"is {tuple(broken)}", "Give one probability in [0, 1] per domain.")
    if patches < 1 or noise < 0:
        raise InputError(
            "patches, noise", f"are {patches}, {noise}", "Give 1 or more patches and a deviation from 0."
        )
    from sklearn.datasets import load_digits

    small = load_digits()
    if not 20 <= test <= len(small.target) - 20:
        raise InputError("test", f"is {test}", f"Give a number from 20 to {len(small.target) - 20}.")
    generator = torch.Generator().manual_seed(derive_seed(seed))
    order = torch.randperm(len(small.target), generator=generator)
    parts = [order[test:], *[order[:test]] * (len(broken) - 1)]
    rows = torch.cat(parts)
    domain = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    labels = torch.from_numpy(small.target).long()[rows]
    pixels = torch.from_numpy(small.images).float().flatten(1)[rows] / 16
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator)
    colours = _colours(patches, seed)
    probability = torch.tensor(broken, dtype=torch.float64)[domain].unsqueeze(1)
    redrawn = torch.rand(len(rows), patches, generator=generator, dtype=torch.float64) < probability
    anything = torch.randint(10, (len(rows), patches), generator=generator)
    shown = torch.where(redrawn, anything, labels.unsqueeze(1))
    shades = colours[torch.arange(patches), shown]
    options = {"broken": tuple(broken), "patches": patches, "noise": noise, "test": test, "seed": seed}
    return Shift(
        name="patched-digits",
        kind="array",
        inputs=torch.cat([pixels, shades.flatten(1)], 1),
        labels=labels,
        domain=domain,
        classes=DIGITS,
        domains=tuple(f"broken-{p:g}" for p in broken),
        ids=[f"optdigits/{row}/{broken[d]:g}" for row, d in zip(rows.tolist(), domain.tolist(), strict=True)],
        description="A digit and many colours that agree with it in training; elsewhere each is broken at times.",
        source={"source": str(Spec.make("patched-digits", **options))},
    )


def shown_digits(shift: Shift) -> Tensor:
    """(N, P) int64: the digit whose colour each patch of "patched-digits" shows; it is broken where that is not
    the label."""
    source = Spec.of(str(shift.source.get("source", "")))
    if source.name != "patched-digits":
        raise InputError(f"shift {shift.name!r}", "has no patches", 'Open the shift "patched-digits".')
    seed, patches = source.options["seed"], source.options["patches"]
    shades = shift.inputs[:, PIXELS:].unflatten(1, (patches, 3))
    distance = torch.cdist(shades.transpose(0, 1), _colours(patches, seed))
    return distance.argmin(2).T


def _colours(patches: int, seed: int) -> Tensor:
    """(P, 10, 3) colours of each patch for each digit."""
    return torch.rand(patches, 10, 3, generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
