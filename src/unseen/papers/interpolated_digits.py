"""Digits in styles: a small network that knows all styles a little, and fine-tunings that know three of them well."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from unseen.averaging import StateDict, snapshot
from unseen.papers.digit_styles import (
    Style,
    blur,
    contrast,
    gradient_background,
    inversion,
    noise,
    occlusion,
    rotation,
)
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.sampling import derive_seed

SEEN: dict[str, Style] = {"plain": lambda images, seed: images, "blur": blur, "contrast": contrast}
UNSEEN: dict[str, Style] = {
    "noise": noise,
    "rotation": rotation,
    "inversion": inversion,
    "gradient": gradient_background,
    "occlusion": occlusion,
}
Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning."""

    rate: float
    steps: int
    decay: float
    seed: int


@dataclass(frozen=True)
class StyledDigits:
    """Images (N, 1, 14, 14) and labels: of all styles to pretrain on, of the seen ones to fine-tune on, to choose and
    to judge by, of the unseen ones to judge by. No digit is in two of these."""

    pretraining: Examples
    tuning: Examples
    validation: Examples
    seen: Examples
    unseen: Examples

    @classmethod
    def draw(cls, seed: int, pretrain: int = 2000, tune: int = 500, judge: int = 200) -> StyledDigits:
        images, digits = mnist()
        generator = torch.Generator().manual_seed(derive_seed(seed, 1))
        order = torch.randperm(len(digits), generator=generator)
        sizes = [pretrain, tune, 3 * judge // 2, 3 * judge // 2, judge]
        parts = order[: sum(sizes)].split(sizes)

        def in_styles(rows: Tensor, styles: dict[str, Style], every: bool) -> Examples:
            """Each digit in every style, or in one of them in turn."""
            found, labels = [], []
            for index, (number, style) in enumerate(zip(itertools.count(), styles.values(), strict=False)):
                own = rows if every else rows[index :: len(styles)]
                found.append(style(images[own, None].float() / 255, derive_seed(seed, 2, number)))
                labels.append(digits[own])
            return avg_pool2d(torch.cat(found), 2), torch.cat(labels)

        return cls(
            in_styles(parts[0], {**SEEN, **UNSEEN}, every=False),
            in_styles(parts[1], SEEN, every=False),
            in_styles(parts[2], SEEN, every=False),
            in_styles(parts[3], SEEN, every=False),
            in_styles(parts[4], UNSEEN, every=True),
        )


def network(seed: int) -> nn.Sequential:
    """Five blocks: three convolutions and a linear layer, each with normalisation, and the head."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 3))
        blocks: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(4, outer),
                nn.ReLU(),
            )
            for inner, outer, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2))
        ]
        blocks.append(nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.LayerNorm(64), nn.ReLU()))
        return nn.Sequential(*blocks, nn.Linear(64, 10))


def pretrained(data: StyledDigits, seed: int, steps: int = 80) -> nn.Sequential:
    """Adam (1e-3), batches of 128 of all styles; few steps, so that fine-tuning has something to add."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    _train(model, optimizer, _batches(data.pretraining, derive_seed(seed, 4), 128, steps))
    return model


def fine_tuned(start: nn.Module, data: StyledDigits, recipe: Recipe) -> StateDict:
    """State after AdamW, batches of 64 of the seen styles."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    _train(model, optimizer, _batches(data.tuning, derive_seed(recipe.seed, 5), 64, recipe.steps))
    return snapshot(model)


def _batches(examples: Examples, seed: int, size: int, steps: int) -> Iterator[Examples]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(examples[1]), (size,), generator=generator)
        yield examples[0][rows], examples[1][rows]


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Examples]) -> None:
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, state: StateDict, examples: Examples) -> float:
    """Of the model with a state, which it keeps."""
    model.load_state_dict(state)
    return float((model(examples[0]).argmax(1) == examples[1]).double().mean())
