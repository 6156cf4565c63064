"""Named things: 144 coloured, textured shapes with noisy captions; some are classes, others are unfamiliar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from unseen.papers.tiny_world import COLOURS, SIDE, _masks
from unseen.papers.word_clip import WordClip, train_word_clip
from unseen.shifts.sampling import derive_seed

TEXTURES = ("plain", "striped", "dotted")
HUES = ("red", "green", "blue", "yellow", "pink", "cyan")
FORMS = ("disk", "square", "triangle", "cross", "ring", "bar", "checker", "corner")
ADJECTIVES = ("big", "small", "old", "new", "bright", "dark", "quiet", "late", "fine", "cheap")
NOUNS = ("table", "wall", "room", "day", "place", "garden", "street", "paper", "party", "trip")
PLAIN_TEMPLATES = ("a photo of a {}", "a picture of a {}", "this is a {}", "one {}", "{}", "see my {}")
NOISE = 0.25
"""Standard deviation of the pixels' noise."""
WORDS = tuple(
    dict.fromkeys((
        *TEXTURES, *HUES, *FORMS, *ADJECTIVES, *NOUNS, "a", "photo", "picture", "of", "this", "is", "one",
        "see", "my",
    ))
)  # fmt: skip


class Thing(NamedTuple):
    """Indices into TEXTURES, HUES and FORMS."""

    texture: int
    hue: int
    form: int

    @property
    def name(self) -> str:
        return f"{TEXTURES[self.texture]} {HUES[self.hue]} {FORMS[self.form]}"

    def shares(self, other: Thing) -> int:
        return sum(a == b for a, b in zip(self, other, strict=True))


THINGS = tuple(Thing(*t) for t in itertools.product(range(3), range(len(HUES)), range(len(FORMS))))


def draw_things(things: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 3, 16, 16) in [0, 1] of things (N, 3); sizes, places, grounds and noise are drawn."""
    count = len(things)
    texture, hue, form = things.T
    draws = torch.rand(count, 4, generator=generator)
    radius, centre = 5 + 2 * draws[:, :1, None], 6.5 + 2 * draws[:, 1:3]
    axis = torch.arange(SIDE).float()
    u = ((axis - centre[:, :1])[:, None, :] / radius).expand(-1, SIDE, -1)
    v = ((axis - centre[:, 1:])[:, :, None] / radius).expand(-1, -1, SIDE)
    inside = _masks(u, v)[form, torch.arange(count)]
    rows, columns = axis.long()[:, None] + 0 * axis.long(), axis.long() + 0 * axis.long()[:, None]
    patterns = torch.stack([
        torch.ones(SIDE, SIDE), (rows % 3 != 0).float(), ((rows % 2 == 0) | (columns % 2 == 0)).float()
    ])  # fmt: skip
    fill = COLOURS[hue].view(-1, 3, 1, 1) * (0.2 + 0.8 * patterns[texture].unsqueeze(1))
    ground = (0.1 + 0.3 * draws[:, 3]).view(-1, 1, 1, 1)
    image = torch.where(inside.unsqueeze(1), fill, ground)
    return (image + NOISE * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def draw_grounds(count: int, generator: torch.Generator) -> Tensor:
    """Images (N, 3, 16, 16) of soft random patches: what goes with words that name no thing."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear")


def moved_look(images: Tensor, generator: torch.Generator) -> Tensor:
    """Covariate shift: another tint (each channel times 0.7 to 1.2) and a blur; the names stay right."""
    tint = 0.7 + 0.5 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return avg_pool2d((images * tint).clamp(0, 1), 3, 1, 1, count_include_pad=False)


def captioned(count: int, generator: torch.Generator, *, wrong: float = 0.2) -> tuple[Tensor, list[str]]:
    """Images of random things and grounds (one in ten) with captions, of which each attribute is wrong with a
    chance of `wrong` / 3; half of them hold a stray adjective and noun."""
    things = torch.tensor(THINGS)[torch.randint(len(THINGS), (count,), generator=generator)]
    images = draw_things(things, generator)
    empty = torch.rand(count, generator=generator) < 0.1
    images[empty] = draw_grounds(int(empty.sum()), generator)
    told = things.clone()
    for column, size in enumerate((len(TEXTURES), len(HUES), len(FORMS))):
        bad = torch.rand(count, generator=generator) < wrong / 3
        told[bad, column] = torch.randint(size, (int(bad.sum()),), generator=generator)
    picks = torch.randint(2**31, (count, 4), generator=generator).tolist()
    captions = []
    for row, (template, adjective, noun, stray) in enumerate(picks):
        extra = f"{ADJECTIVES[adjective % len(ADJECTIVES)]} {NOUNS[noun % len(NOUNS)]}"
        name = extra if empty[row] else Thing(*told[row].tolist()).name
        text = PLAIN_TEMPLATES[template % len(PLAIN_TEMPLATES)].format(name)
        captions.append(f"{text} {extra}" if stray % 2 and not empty[row] else text)
    return images, captions


def things_clip(seed: int, *, pairs: int, epochs: int, width: int = 16) -> WordClip:
    """The small CLIP that has seen all things with noisy captions."""
    images, captions = captioned(pairs, torch.Generator().manual_seed(derive_seed(seed, 1)))
    return train_word_clip(images, captions, WORDS, seed=derive_seed(seed, 2), epochs=epochs, width=width)


@dataclass(frozen=True)
class Setting:
    """Which things are classes, which are unfamiliar, and what words negatives may be mined from.

    classes     20 things of 5 forms, 4 hues and 2 textures
    near        things that share two attributes with a class
    far         things that share none with any class
    candidates  names of all other things but 30 % of `near`, and pairs of an adjective and a noun
    """

    classes: tuple[Thing, ...]
    near: tuple[Thing, ...]
    far: tuple[Thing, ...]
    candidates: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [thing.name for thing in self.classes]


def draw_setting(generator: torch.Generator) -> Setting:
    def chosen(size: int, count: int) -> set[int]:
        return set(torch.randperm(size, generator=generator)[:count].tolist())

    textures, hues, forms = chosen(3, 2), chosen(len(HUES), 4), chosen(len(FORMS), 5)
    block = [t for t in THINGS if t.texture in textures and t.hue in hues and t.form in forms]
    classes = tuple(block[i] for i in sorted(chosen(len(block), 20)))
    others = [t for t in THINGS if t not in classes]
    nearest = {t: max(t.shares(c) for c in classes) for t in others}
    near = tuple(t for t in others if nearest[t] == 2)
    withheld = {near[i] for i in chosen(len(near), round(0.3 * len(near)))}
    pairs = [f"{a} {n}" for a, n in itertools.product(ADJECTIVES, NOUNS)]
    kept = sorted(chosen(len(pairs), 40))
    names = [t.name for t in others if t not in withheld] + [pairs[i] for i in kept]
    return Setting(classes, near, tuple(t for t in others if nearest[t] == 0), tuple(names))


def pictures_of(
    names: Sequence[str], count: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` images for each name from an imperfect generator, and labels: with a chance of `noise` an image
    shows another random thing."""
    by_name = {thing.name: thing for thing in THINGS}
    labels = torch.arange(len(names)).repeat_interleave(count)
    asked = [by_name.get(names[i]) for i in labels.tolist()]
    wrong = (torch.rand(len(labels), generator=generator) < noise).tolist()
    any_thing = torch.randint(len(THINGS), (len(labels),), generator=generator).tolist()
    shown = [THINGS[r] if bad else thing for bad, thing, r in zip(wrong, asked, any_thing, strict=True)]
    images = draw_things(torch.tensor([thing or THINGS[0] for thing in shown]), generator)
    empty = torch.tensor([thing is None for thing in shown])
    images[empty] = draw_grounds(int(empty.sum()), generator)
    return images, labels
