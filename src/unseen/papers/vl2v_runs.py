"""TinyWorld for VL2V-ADiP: a small CLIP that is only asked, a pretrained student, and every way to train it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from unseen.distillation.environments import Environments
from unseen.distillation.logits import logit_kl
from unseen.distillation.student_training import outputs, train_stage
from unseen.distillation.teachers import Teacher
from unseen.distillation.text_classifier import text_classifier
from unseen.distillation.vision_language import VLDistiller
from unseen.networks import Network
from unseen.objectives import Loss, Objective
from unseen.objectives.base import example_losses
from unseen.objectives.erm import ERM
from unseen.objectives.example_weights import Table
from unseen.papers.tiny_world import (
    COLOURS,
    DOMAINS,
    SHAPES,
    ImageEncoder,
    TinyClip,
    examples,
    render,
    train_clip,
)
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.learner import Learner
from unseen.training.system import seeded

SOURCE = ("photo", "blur", "dark")
UNSEEN = ("sketch", "negative", "noise", "tint", "stripe")
KNOWN = ("photo", "sketch", "negative", "tint", "stripe")
"""The looks that the student was pretrained on, with four shapes in four colours."""

TEMPLATES = tuple(f"a photo of a {{}} {colour}" for colour in range(len(COLOURS)))
FEATURES = 128
SETTINGS: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-3, "evaluations": 10}


@lru_cache(maxsize=2)
def tiny_clip(domains: tuple[str, ...] = DOMAINS, pairs: int = 12000, epochs: int = 8) -> TinyClip:
    """The teacher: one for all seeds, as there is one CLIP."""
    return TinyClip(*train_clip(20240, pairs=pairs, epochs=epochs, domains=domains)).requires_grad_(False)


def pretrained_student(seed: int, *, images: int = 4000, pretraining: int = 400) -> nn.Module:
    """A convolutional net of half the teacher's width, (N, 3, 16, 16) to 128 features, trained to tell four shapes in
    four colours apart in five looks: partly robust, as an ImageNet backbone is."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    shape, colour = (torch.randint(4, (images,), generator=generator) for _ in range(2))
    looks = torch.tensor([DOMAINS.index(name) for name in KNOWN])[torch.arange(images) % len(KNOWN)]
    x = render(shape, colour, looks, generator)
    with seeded(seed, 1):
        student = ImageEncoder(16, 64).body[:-1]
        network = Network(student, FEATURES, 16)
    batch = Batch(x=x, y=4 * shape + colour, domain=torch.zeros(images).long(), domains=1)
    learner = Learner(steps=pretraining, batch_size=128, learning_rate=1e-3, keep="last", evaluations=1)
    train_stage(
        network, ERM(), Environments.of(batch), None, learner,
        seed=derive_seed(seed, 2), enter_training_mode=network.train,
    )  # fmt: skip
    return student.eval()


@dataclass(frozen=True)
class World:
    """The student before, and environments: to learn from, to choose by, and to judge by."""

    student: nn.Module
    train: Environments
    validation: Environments
    source: Environments
    unseen: Environments


def world(seed: int, *, train: int = 480, held_out: int = 120, test: int = 600, **student: int) -> World:
    """Eight shapes in three looks to learn, and `test` images of each of the eight looks to judge by."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))

    def draw(count: int, looks: Sequence[str]) -> Environments:
        data = {}
        for look in looks:
            x, y = examples(count, [look], generator)
            data[look] = Batch(x=x, y=y, domain=torch.zeros(count).long(), domains=1)
        return Environments.of(data)

    each = len(SOURCE)
    return World(
        pretrained_student(seed, **student),
        draw(train // each, SOURCE), draw(held_out // each, SOURCE), draw(test, SOURCE), draw(test, UNSEEN),
    )  # fmt: skip


class LogitDistillation(Objective):
    """(1 - share) CE + share T^2 KL(teacher || student) of softened logits (Hinton et al. 2015).

    logits  (N, C) of the teacher, by ids
    """

    def __init__(self, logits: Tensor, share: float = 0.5, temperature: float = 1.0):
        super().__init__()
        self.share, self.temperature, self.known = share, temperature, Table()
        self.known.fill(logits)

    def forward(self, model: Network, batch: Batch) -> Loss:
        logits = model(batch.x)
        imitation = logit_kl(logits, self.known.of(batch), self.temperature) * self.temperature**2
        fit = example_losses(logits, batch).mean()
        return Loss((1 - self.share) * fit + self.share * imitation, {"fit": fit, "imitation": imitation})


def supervised(
    world: World, seed: int, objective: Objective, steps: int, *, averaging: Any = None, probe: int = 0
) -> Network:
    """The student under a new linear head: `probe` steps of the head alone, then `steps` of everything."""
    with seeded(seed, 4):
        network = Network(copy.deepcopy(world.student), FEATURES, len(SHAPES))
    for number, (count, everything) in enumerate(((probe, False), (steps, True))):
        if not count:
            continue
        network.featurizer.requires_grad_(everything)
        learner = Learner(steps=count, averaging=averaging if everything else None, **SETTINGS)
        result = train_stage(
            network, objective, world.train, world.validation, learner,
            seed=derive_seed(seed, 5, number), enter_training_mode=network.train,
        )  # fmt: skip
        network.load_state_dict(result.averaged or result.best)
    return network.eval()


def distilled(
    world: World, seed: int, teacher: Any, steps: int, stages: Sequence[Any], **options: Any
) -> Network:
    """The student by VL2V's loss; `steps` for each of the stages."""
    distiller = VLDistiller(
        world.student, Teacher.of(teacher), stages=stages, seed=derive_seed(seed, 5), steps=steps,
        **{"class_names": SHAPES, "templates": TEMPLATES, **SETTINGS, **options},
    )  # fmt: skip
    return distiller.fit(world.train, world.validation)


def accuracies(network: Network, world: World) -> dict[str, float]:
    """Accuracy on new images of the source looks and on the unseen looks."""
    found = {}
    for name, data in (("source", world.source), ("unseen", world.unseen)):
        logits, labels = outputs(network, data)
        found[name] = float((logits.argmax(1) == labels).double().mean())
    return found


def all_ways(
    seed: int, *, steps: int = 400, clip: Mapping[str, int] | None = None, **sizes: int
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value of every way to train one pretrained student on the same images.

    steps  of each of two stages; others get twice as many, and where a name says so, all get half
    clip   `pairs` and `epochs` of the teachers
    """
    teacher, narrow = tiny_clip(**(clip or {})), tiny_clip(SOURCE, **(clip or {}))
    here = world(seed, **sizes)
    texts = Teacher(teacher).texts(SHAPES, TEMPLATES)
    zero_shot = text_classifier(teacher.image, texts, teacher.logit_scale)
    imitation = LogitDistillation(outputs(zero_shot, here.train)[0])
    half, twice = steps // 2, 2 * steps
    staged = ("align", "distill")
    nobody = Teacher.from_embeddings(
        torch.ones(len(here.train), texts.shape[1]), logit_scale=teacher.logit_scale
    )
    words = torch.randn(texts.shape, generator=torch.Generator().manual_seed(derive_seed(seed, 6)))
    ways: dict[str, Callable[[], Network]] = {
        "teacher": lambda: zero_shot,
        "erm": lambda: supervised(here, seed, ERM(), twice),
        "erm, half": lambda: supervised(here, seed, ERM(), steps),
        "swad": lambda: supervised(here, seed, ERM(), twice, averaging="swad"),
        "lp-ft": lambda: supervised(here, seed, ERM(), steps, probe=steps),
        "linear probe": lambda: supervised(here, seed, ERM(), 0, probe=steps),
        "kd": lambda: supervised(here, seed, imitation, twice),
        "kd, half": lambda: supervised(here, seed, imitation, steps),
        "joint": lambda: distilled(here, seed, teacher, twice, ("joint",)),
        "joint, half": lambda: distilled(here, seed, teacher, steps, ("joint",)),
        "align": lambda: distilled(here, seed, teacher, steps, ("align",)),
        "adip": lambda: distilled(here, seed, teacher, steps, staged),
        "adip, half": lambda: distilled(here, seed, teacher, half, staged),
        "adip, images only, half": lambda: distilled(here, seed, teacher, half, staged, weight=1.0),
        "adip, texts only, half": lambda: distilled(here, seed, teacher, half, staged, weight=0.0),
        "adip, narrow teacher": lambda: distilled(here, seed, narrow, steps, staged),
        "adip, no teacher": lambda: distilled(
            here, seed, nobody, steps, staged, weight=0.0, class_names=None, text_embeddings=words
        ),
    }
    found: dict[tuple[str, str], float] = {}
    for condition, way in ways.items():
        for metric, value in accuracies(way(), here).items():
            found[condition, metric] = value
    narrow_texts = Teacher(narrow).texts(SHAPES, TEMPLATES)
    narrow_network = text_classifier(narrow.image, narrow_texts, narrow.logit_scale)
    for metric, value in accuracies(narrow_network, here).items():
        found["narrow teacher", metric] = value
    return found
