"""TinyWorld for Machine Vision Therapy: a small CLIP of two looks, a judge that knows all looks but no names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from unseen.distillation.text_classifier import text_classifier
from unseen.networks import Network
from unseen.networks.feature_cache import content_hash
from unseen.papers.tiny_world import DOMAINS, SHAPES, ImageEncoder, captions_of, render, train_clip
from unseen.relabelling.labeler import DenoisingInContextLabeler, RelabelResult, Support
from unseen.relabelling.matching import MatchingNetwork, train_matching
from unseen.relabelling.questions import Questions, ask
from unseen.relabelling.therapy import therapy_finetune, therapy_report
from unseen.relabelling.transition import estimate_transition
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

SOURCE, TARGET = ("photo", "blur"), ("sketch", "negative", "stripe", "tint")
GROUPS = torch.tensor([[0, 7], [2, 5]])
"""Colours of the two groups that make classes with the shapes: red and orange, blue and cyan."""
JUDGES_GROUPS = torch.tensor([[1, 3], [4, 6]])
"""Colours that the judge learns from: green and yellow, magenta and white."""
CLASSES = len(GROUPS) * len(SHAPES)
NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in ("red", "blue"))
KNOWN_SHAPES = 6
"""The judge learns from so many shapes."""
LEARNING_RATE = 3e-4
Labelled = tuple[Tensor, Tensor]


def draw(
    label: Tensor, looks: tuple[str, ...], generator: torch.Generator, groups: Tensor = GROUPS
) -> Labelled:
    """Images of classes (N,), a shape in a colour of one of two groups, of the looks by turns; and the classes."""
    colour = groups[label % 2, torch.randint(groups.shape[1], label.shape, generator=generator)]
    look = torch.tensor([DOMAINS.index(name) for name in looks])[torch.arange(len(label)) % len(looks)]
    return render(label // 2, colour, look, generator), label


@lru_cache(maxsize=2)
def vision_model(pairs: int = 8000, epochs: int = 8) -> Network:
    """The small CLIP of photographs and blurred ones, its texts those of 16 classes; one for all seeds."""
    image, text, scale = train_clip(20242, pairs=pairs, epochs=epochs, width=16, domains=SOURCE)
    label = torch.arange(CLASSES)
    with torch.no_grad():
        texts = [text(captions_of(label // 2, len(SHAPES) + own[label % 2])) for own in GROUPS.T]
    return text_classifier(image, normalize(torch.stack(texts).mean(0), dim=1), scale).eval()


@lru_cache(maxsize=2)
def judge(images: int = 6000, steps: int = 800) -> MatchingNetwork:
    """A matching network of all looks, of other colours and without two of the shapes; one for all seeds."""
    generator = torch.Generator().manual_seed(20243)
    label = torch.randint(2 * KNOWN_SHAPES, (images,), generator=generator)
    x, y = draw(label, DOMAINS, generator, JUDGES_GROUPS)
    with seeded(20243):
        network = MatchingNetwork(ImageEncoder(16, 64))
    return train_matching(network, x, y, steps=steps, seed=20243)


@dataclass(frozen=True)
class World:
    """Unlabelled images of the target to relabel and learn from, others to judge by, and two supports."""

    used: Labelled
    held_out: Labelled
    support: Support
    source_support: Support


def world(seed: int, images: int = 1500, per_class: int = 5) -> World:
    """Half of the target to use, half to judge by; `per_class` exemplars of each class of target and source."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    shown = torch.arange(CLASSES).repeat(per_class)
    supports = [Support(*draw(shown, looks, generator), NAMES) for looks in (TARGET, SOURCE)]
    x, y = draw(torch.randint(CLASSES, (images,), generator=generator), TARGET, generator)
    # outlines of one place and size are equal pixel by pixel: no image may be seen in two roles
    seen = {content_hash(image) for support in supports for image in support.images}
    fresh = []
    for image in x:
        fresh.append(content_hash(image) not in seen)
        seen.add(content_hash(image))
    x, y = x[torch.tensor(fresh)], y[torch.tensor(fresh)]
    half = len(x) // 2
    return World((x[:half], y[:half]), (x[half:], y[half:]), *supports)


# ---- labels ----


@torch.no_grad()
def transition_of(model: Network, support: Support, per_class: int = 5) -> Tensor:
    return estimate_transition(model(support.images).softmax(1), support.labels, per_class)


def as_result(
    label: Tensor, predicted: Tensor, score: Tensor | None = None, queries: int = 0
) -> RelabelResult:
    """Labels that did not come from a labeler; none counts as accepted, so that each is learnt as it is."""
    return RelabelResult(
        label=label,
        score=torch.ones(len(label)) if score is None else score,
        accepted=torch.zeros(len(label), dtype=torch.bool),
        candidates=predicted[:, None],
        n_queries=torch.full_like(label, queries),
        predicted=predicted,
    )


def judged_alone(
    images: Tensor, predicted: Tensor, support: Support, seed: int, exemplars: int = 3
) -> RelabelResult:
    """The judge as a classifier: every class is asked about, beside exemplars of a class drawn at random."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    count, classes = len(images), len(support.names)
    rows = torch.stack([(support.labels == c).nonzero().flatten()[:exemplars] for c in range(classes)])
    exemplars = rows.shape[1]
    query = torch.arange(count).repeat_interleave(classes * exemplars)
    positive = rows.flatten().repeat(count)
    rival = (
        support.labels[positive] + torch.randint(1, classes, positive.shape, generator=generator)
    ) % classes
    place = torch.randint(exemplars, positive.shape, generator=generator)
    names = [support.names[c] for c in support.labels[positive].tolist()]
    others = [support.names[c] for c in rival.tolist()]
    questions = Questions(images, support.images, query, positive, rows[rival, place], names, others)
    answers = ask(judge().verify, questions).view(count, classes, exemplars).mean(2)
    score, label = answers.max(1)
    return as_result(label, predicted, score, classes * exemplars)


@torch.no_grad()
def neighbours(model: Network, images: Tensor, support: Support, k: int) -> Tensor:
    """Labels (N,) by the votes of the k support images that are nearest in the model's features; ties by cosine."""
    own, theirs = (normalize(model.featurizer(x), dim=1) for x in (images, support.images))
    near = (own @ theirs.T).topk(k, 1)
    votes = one_hot(support.labels[near.indices], len(support.names)) * (1 + 1e-3 * near.values[..., None])
    return votes.sum(1).argmax(1)


def best_neighbours(model: Network, images: Tensor, support: Support) -> tuple[int, Tensor]:
    """`neighbours` with the k of 1, 3, 5 and 9 that labels the support itself best, each image left out."""
    scores = {}
    for k in (1, 3, 5, 9):
        with torch.no_grad():
            own = normalize(model.featurizer(support.images), dim=1)
        cosines = (own @ own.T).fill_diagonal_(-2)
        near = cosines.topk(k, 1)
        votes = one_hot(support.labels[near.indices], len(support.names)) * (
            1 + 1e-3 * near.values[..., None]
        )
        scores[k] = int((votes.sum(1).argmax(1) == support.labels).sum())
    k = max(scores, key=lambda each: scores[each])
    return k, neighbours(model, images, support, k)


def blind(seed: int) -> Callable[[Questions], Tensor]:
    """The judge with eyes on another image than the one in question: the control."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 4))

    def verify(questions: Questions) -> Tensor:
        order = torch.randperm(len(questions.images), generator=generator)
        return judge().verify(replace(questions, query=order[questions.query]))

    return verify


def run(
    seed: int, *, images: int = 1500, per_class: int = 5, rate: float = LEARNING_RATE, tuned: bool = True
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value of all label sets, and of the model after learning from each."""
    model, here = vision_model(), world(seed, images, per_class)
    (x, y), support = here.used, here.support
    with torch.no_grad():
        predicted = model(x).argmax(1)

    def dicl(support: Support = support, **options: object) -> RelabelResult:
        settings = {
            "verifier": judge().verify,
            "transition": transition_of(model, support),
            "seed": seed,
            **options,
        }
        return DenoisingInContextLabeler(model, support=support, **settings).relabel(x)  # type: ignore[arg-type]

    label_sets = {
        "vision model": as_result(predicted, predicted),
        "judge alone": judged_alone(x, predicted, support, seed),
        "neighbours": as_result(best_neighbours(model, x, support)[1], predicted),
        "dicl, random candidates": dicl(candidates="random"),
        "dicl, softmax candidates": dicl(candidates="softmax"),
        "dicl, random exemplars": dicl(retrieval="random"),
        "dicl, all asked": dicl(accept=None),
        "dicl, source support": dicl(here.source_support),
        "dicl, blind judge": dicl(verifier=blind(seed)),
        "dicl": dicl(),
        "true labels": as_result(y, predicted),
    }
    found: dict[tuple[str, str], float] = {}
    for name, result in label_sets.items():
        report = result.report(y)
        found[name, "labels"] = report["after"]
        found[name, "corrected"], found[name, "destroyed"] = report["corrected"], report["destroyed"]
        found[name, "queries"] = report["queries per image"]
    before = therapy_report(model, here.used, here.held_out)
    found["vision model", "before: held out"] = before["held out"]
    if not tuned:
        return found
    for name, result in label_sets.items():
        network = therapy_finetune(model, x, result, lr=rate, seed=derive_seed(seed, 5))
        for metric, value in therapy_report(network, here.used, here.held_out).items():
            found[name, metric] = value
    alone = as_result(support.labels, support.labels)
    epochs = round(3 * len(x) / len(support.labels))  # as many steps as the others
    network = therapy_finetune(
        model, support.images, alone, lr=rate, epochs=epochs, seed=derive_seed(seed, 5)
    )
    for metric, value in therapy_report(network, here.used, here.held_out).items():
        found["support alone", metric] = value
    return found
