"""TinyWorld for open-vocabulary distillation: 64 coloured shapes, half of them never seen by the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unseen.distillation.open_vocabulary import OpenVocabDistiller, space_consistency
from unseen.distillation.teachers import Teacher
from unseen.papers.tiny_world import COLOURS, DOMAINS, SHAPES, WORDS, ImageEncoder, captions_of, render
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

CLASSES = len(SHAPES) * len(COLOURS)
PAIRS = torch.cartesian_prod(torch.arange(len(SHAPES)), torch.arange(len(COLOURS)))
"""(64, 2) shape and colour of each class."""
SEEN = (PAIRS.sum(1) % 2 == 0).nonzero().squeeze(1)
NEW = (PAIRS.sum(1) % 2 == 1).nonzero().squeeze(1)
"""A checkerboard: every shape and every colour is seen, in half of their pairs."""
LOOKS, NEW_LOOKS = ("photo", "blur"), ("negative", "tint", "stripe")
SETTINGS: dict[str, Any] = {"optimizer": "adam", "learning_rate": 2e-3, "weight_decay": 0.0, "batch_size": 64}

LOSSES: dict[str, dict[str, float]] = {
    "cls": {"cls": 1},
    "mse alone": {"mse": 1},
    "cls + mse": {"cls": 1, "mse": 1},
    "cls + contrast": {"cls": 1, "contrast": 1},
    "cls + vlalign": {"cls": 1, "vlalign": 1},
    "all": {"cls": 1, "mse": 1, "contrast": 1, "vlalign": 1},
}


class Words(nn.Module):
    """The mean of a caption's word vectors through a perceptron; captions are (N, words) of 0 and 1."""

    def __init__(self, words: int, size: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(words, 64, bias=False), nn.ReLU(), nn.Linear(64, size))

    def forward(self, captions: Tensor) -> Tensor:
        return normalize(self.body(captions / captions.sum(1, keepdim=True)), dim=-1)


@dataclass(frozen=True)
class Clip:
    """Image and text encoders of one space."""

    image: ImageEncoder
    text: Words

    @torch.no_grad()
    def texts(self, kind: str) -> Tensor:
        """(64, D) embeddings of the classes' "enriched" texts, shape and colour, or "opaque" ones, a word each."""
        return self.text(enriched() if kind == "enriched" else opaque())


def enriched() -> Tensor:
    """(64, words) captions that describe each class by its shape and its colour."""
    return nn.functional.pad(captions_of(PAIRS[:, 0], 8 + PAIRS[:, 1]), (0, CLASSES))


def opaque() -> Tensor:
    """(64, words) captions that have one word of its own for each class."""
    captions = nn.functional.pad(captions_of(torch.full((CLASSES,), len(WORDS) - 1)), (0, CLASSES))
    captions[:, len(WORDS) :] = torch.eye(CLASSES)
    return captions


def contrastive(
    images: Tensor, captions: Tensor, seed: int, *, width: int, size: int, epochs: int, batch: int = 256
) -> Clip:
    """Both encoders after Adam at 1e-3 on a symmetric contrastive loss; equal captions are positives of each other."""
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        image, text = ImageEncoder(width, size), Words(captions.shape[1], size)
        scale = nn.Parameter(torch.tensor(10.0).log())
    optimizer = torch.optim.Adam([*image.parameters(), *text.parameters(), scale], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            logits = scale.clamp(max=math.log(100)).exp() * image(images[rows]) @ text(captions[rows]).T
            same = (captions[rows].unsqueeze(1) == captions[rows]).all(2).float()
            target = same / same.sum(1, keepdim=True)
            loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Clip(image.eval(), text.eval())


@lru_cache(maxsize=1)
def teacher(pairs: int = 12000, epochs: int = 8) -> Clip:
    """A small CLIP of all looks, one for all seeds: half of its captions describe, half use the class's own word."""
    generator = torch.Generator().manual_seed(20241)
    label = torch.randint(CLASSES, (pairs,), generator=generator)
    look = torch.randint(len(DOMAINS), (pairs,), generator=generator)
    images = render(PAIRS[label, 0], PAIRS[label, 1], look, generator)
    own = torch.rand(pairs, 1, generator=generator) < 0.5
    captions = torch.where(own, opaque()[label], enriched()[label])
    told = torch.rand(pairs, generator=generator) < 0.5
    captions[told, 16 + look[told]] = 1
    return contrastive(images, captions, 20241, width=32, size=64, epochs=epochs)


Examples = tuple[Tensor, Tensor]


def draw(classes: Tensor, looks: tuple[str, ...], each: int, generator: torch.Generator) -> Examples:
    """Images and labels below 64: `each` of every class, in the named looks by turns."""
    label = classes.repeat_interleave(each)
    look = torch.tensor([DOMAINS.index(name) for name in looks])[torch.arange(len(label)) % len(looks)]
    return render(PAIRS[label, 0], PAIRS[label, 1], look, generator), label


@dataclass(frozen=True)
class World:
    """What the student learns from, and what judges it."""

    train: Examples
    seen: Examples
    new: Examples
    new_looks: Examples


def world(seed: int, each: int = 30, test: int = 30) -> World:
    """`each` images of each of 32 classes to learn from, `test` of each class to judge by."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    return World(
        draw(SEEN, LOOKS, each, generator), draw(SEEN, LOOKS, test, generator),
        draw(NEW, LOOKS, test, generator), draw(NEW, NEW_LOOKS, test, generator),
    )  # fmt: skip


def student(seed: int) -> nn.Module:
    """A convolutional net of a quarter of the teacher's width, from scratch."""
    with seeded(seed, 2):
        return ImageEncoder(8, 64).body


@torch.no_grad()
def judged(embed: nn.Module, texts: Tensor, world: World) -> dict[str, float]:
    """Class-averaged accuracies: every class has as many images, so that these are plain means."""
    found = {}
    for name, (x, y), classes in (
        ("seen", world.seen, SEEN),
        ("new", world.new, NEW),
        ("new, 64 ways", world.new, torch.arange(CLASSES)),
        ("new, new looks", world.new_looks, NEW),
    ):
        nearest = (normalize(embed(x), dim=-1) @ texts[classes].T).argmax(1)
        found[name] = float((classes[nearest] == y).double().mean())
    return found


def distilled(
    here: World,
    seed: int,
    texts: Tensor,
    features: Tensor,
    losses: Mapping[str, float],
    steps: int,
    filtered: bool = True,
) -> nn.Module:
    """The student's embedder after `steps` of the named losses; the teacher is known by its features alone."""
    x, y = here.train
    position = torch.full((CLASSES,), -1)
    position[SEEN] = torch.arange(len(SEEN))
    distiller = OpenVocabDistiller(
        student(seed), Teacher.from_embeddings(features), texts[SEEN], losses,
        filter_misaligned=filtered, seed=derive_seed(seed, 3), steps=steps, evaluations=1, **SETTINGS,
    )  # fmt: skip
    distiller.fit(Batch(x=x, y=position[y], domain=torch.zeros(len(y)).long(), domains=1))
    return distiller.embedder


def all_ways(
    seed: int, *, steps: int = 300, clip: Mapping[str, int] | None = None, **sizes: int
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value of every loss with both kinds of texts, and of students without a teacher."""
    master, here = teacher(**(clip or {})), world(seed, **sizes)
    with torch.no_grad():
        features = master.image(here.train[0])
        judges = master.image(here.new[0])
    shuffled = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))]
    found: dict[tuple[str, str], float] = {}

    def note(condition: str, embed: nn.Module, texts: Tensor) -> None:
        found.update({(condition, name): value for name, value in judged(embed, texts, here).items()})
        with torch.no_grad():
            alike = space_consistency(embed(here.new[0]), judges, master.texts("enriched")[NEW])
        found[condition, "neighbours"] = alike.neighbours
        found[condition, "divergence"] = alike.divergence

    for kind, prefix in (("enriched", ""), ("opaque", "opaque, ")):
        texts = master.texts(kind)
        note(f"{prefix}teacher", master.image, texts)
        for name in LOSSES if kind == "enriched" else ("cls", "all"):
            note(f"{prefix}{name}", distilled(here, seed, texts, features, LOSSES[name], steps), texts)
    texts = master.texts("enriched")
    unfiltered = distilled(here, seed, texts, features, LOSSES["cls + vlalign"], steps, filtered=False)
    note("cls + vlalign, unfiltered", unfiltered, texts)
    note("all, shuffled", distilled(here, seed, texts, shuffled, LOSSES["all"], steps), texts)
    y = here.train[1]
    epochs = math.ceil(steps * SETTINGS["batch_size"] / len(y))
    alone = contrastive(
        here.train[0], enriched()[y], derive_seed(seed, 4), width=8, size=64, epochs=epochs, batch=64
    )
    found.update(
        {("contrastive", name): v for name, v in judged(alone.image, alone.texts("enriched"), here).items()}
    )
    return found
