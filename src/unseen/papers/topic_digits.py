"""Two halves of a real digit and a sentence about it: a small world of modalities, topics and missing positions.

Classes are three groups of digits. A sentence of 12 words has 3 cue words, each of the right group with
probability 0.6; 3 topic words, which agree with the class as often as a distribution says; and 6 others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.shifts.sampling import derive_seed

GROUP_OF_DIGIT = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
CLASSES = 3
UNKNOWN, MASK = 0, 1
TOPICS, CUES, OTHERS = 3, 24, 200
"""Words of a class's topic, cue words of a class, words of no meaning: topics are few and so frequent."""
FIRST_TOPIC, FIRST_CUE = 2, 2 + CLASSES * TOPICS
FIRST_OTHER = FIRST_CUE + CLASSES * CUES
VOCABULARY = FIRST_OTHER + OTHERS
TOPIC_TOKENS = torch.arange(FIRST_TOPIC, FIRST_CUE)
CUE_AGREES = 0.6
AGREEMENT = {"IID": 0.9, "OOD-1": 1 / 3, "OOD-2": 0.1}
"""How often a topic word is of the example's own class."""
SHIFTED_PRIOR = torch.tensor([0.5, 0.3, 0.2])
"""Class shares in OOD-1 and OOD-2; in training they are about .3, .3, .4."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Sentences:
    """Inputs {"text": (N, 12) int64, "upper" and "lower": (N, 4, 8) float} and labels (N,)."""

    x: Inputs
    y: Tensor

    def take(self, rows: Tensor) -> Sentences:
        return Sentences({name: value[rows] for name, value in self.x.items()}, self.y[rows])


@dataclass(frozen=True)
class World:
    """Training and IID validation (200), 100 labelled validation examples of OOD-1, and tests by name."""

    train: Sentences
    validation: Sentences
    shifted_validation: Sentences
    tests: dict[str, Sentences]

    @property
    def classes(self) -> int:
        return int(self.train.y.max()) + 1


def topic_digits(seed: int, *, agreement: float = AGREEMENT["IID"], test: int = 600) -> World:
    """scikit-learn's 1,797 digits, split anew by the seed; `agreement` of topic words in training and IID tests."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).float() / 16
    groups = GROUP_OF_DIGIT[torch.from_numpy(loaded.target)]
    generator = torch.Generator().manual_seed(derive_seed(seed, 15))
    order = torch.randperm(len(groups), generator=generator)
    held, kept, rest = order[:test], order[test : test + 200], order[test + 200 :]

    def told(rows: Tensor, share: float) -> Sentences:
        return _described(images[rows], groups[rows], share, generator)

    tests = {"IID": told(held, agreement)}
    for name in ("OOD-1", "OOD-2"):
        tests[name] = told(_with_prior(held, groups[held], generator), AGREEMENT[name])
    return World(
        train=told(rest, agreement),
        validation=told(kept, agreement),
        shifted_validation=told(_with_prior(kept, groups[kept], generator)[:100], AGREEMENT["OOD-1"]),
        tests=tests,
    )


def _with_prior(rows: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many rows as can be had with class shares `SHIFTED_PRIOR`, in random order."""
    counts = torch.bincount(labels, minlength=CLASSES)
    most = (counts / SHIFTED_PRIOR).min()
    chosen = [rows[labels == c][: int(most * share)] for c, share in enumerate(SHIFTED_PRIOR)]
    rows = torch.cat(chosen)
    return rows[torch.randperm(len(rows), generator=generator)]


def _described(images: Tensor, labels: Tensor, agreement: float, generator: torch.Generator) -> Sentences:
    def words(first: int, of_class: int, agrees: float) -> Tensor:
        """(N, 3) words, each of the label's class with probability `agrees`, else of another."""
        shape = len(labels), 3
        other = torch.randint(1, CLASSES, shape, generator=generator)
        right = torch.rand(shape, generator=generator) < agrees
        group = torch.where(right, labels.unsqueeze(1), (labels.unsqueeze(1) + other) % CLASSES)
        return first + group * of_class + torch.randint(of_class, shape, generator=generator)

    others = torch.randint(FIRST_OTHER, VOCABULARY, (len(labels), 6), generator=generator)
    text = torch.cat([words(FIRST_CUE, CUES, CUE_AGREES), words(FIRST_TOPIC, TOPICS, agreement), others], 1)
    shuffled = torch.rand(text.shape, generator=generator).argsort(1)
    upper, lower = ((images[:, rows] - 0.3) / 0.37 for rows in (slice(0, 4), slice(4, 8)))
    return Sentences({"text": text.gather(1, shuffled), "upper": upper, "lower": lower}, labels)
