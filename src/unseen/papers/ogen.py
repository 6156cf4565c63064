"""OGEN: does long prompt tuning harm unseen classes, and do generated features of classes known by name help?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.averaging.local_mean_teacher import LocalMeanTeacher
from unseen.errors import InputError
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.tiny_world import COLOURS, DOMAINS, SHAPES, render
from unseen.papers.word_clip import WordClip, train_word_clip
from unseen.prompts import (
    BaseToNew,
    ClassConditionalGenerator,
    Judgement,
    LearntPrompts,
    PromptableEncoder,
    PromptTuner,
    UnknownClassRegularizer,
    ZeroShotPenalty,
    image_features,
)
from unseen.registry import papers
from unseen.shifts.sampling import derive_seed
from unseen.studies.statistics import mean_interval

SOURCE, TASK, OTHERS = ("photo", "blur", "dark"), "stripe", ("photo", "tint")
WORDS = ("a", "photo", "of", *(f"c{i}" for i in range(len(COLOURS))), *SHAPES, *DOMAINS)
PAIRS = tuple(itertools.product(range(len(SHAPES)), range(len(COLOURS))))
SHOTS, EPOCHS, BATCH, LEARNING_RATE = 4, 200, 64, 0.02
WATCHED = (10, 20, 50, 100, 150, 200)
"""Epochs after which base and new accuracy are told; early stopping chooses among them."""
TRAINED = (
    "CoOp",
    "KgCoOp 1",
    "KgCoOp 8",
    "OGEN",
    "OGEN, no teacher",
    "OGEN, other names",
    "untrained generator",
)
FINAL = {
    "base": "accuracy on base classes",
    "new": "accuracy on new classes",
    "harmonic": "harmonic mean of the two",
    "joint new": "accuracy on new classes among base and new names",
    "base ECE": "expected calibration error on base classes",
    "new ECE": "expected calibration error on new classes",
    "base elsewhere": "accuracy on base classes in two other looks",
    "new elsewhere": "accuracy on new classes in two other looks",
}


def _above(what: str, condition: str, other: str) -> Callable[[Measured], float]:
    return lambda m: m[condition, what] - m[other, what]


def _above_penalty(table: pd.DataFrame) -> float:
    """Harmonic mean of OGEN above the better KgCoOp (by its mean), less one standard error of the difference."""
    found = table[table.metric == "harmonic"].pivot(index="seed", columns="condition", values="value")
    best = found[["KgCoOp 1", "KgCoOp 8"]].mean().idxmax()
    difference = found["OGEN"] - found[best]
    return float(difference.mean() - difference.std(ddof=1) / np.sqrt(len(difference)))


@papers.register(
    "ogen",
    summary="Features of classes known by name and a teacher of recent prompts keep tuned prompts open to new classes",
    paper="Zang et al. 2024, arXiv 2401.15914",
)
class OGENReproduction(Reproduction):
    card = Card(
        number=3,
        title="Overcoming the Pitfalls of Vision-Language Model Finetuning for OOD Generalization",
        authors="Zang, Goh, Susskind and Huang",
        venue="ICLR 2024",
        arxiv="2401.15914",
        claim="Long prompt tuning on base classes harms new ones; training the border to classes that are known by "
        "name only, on generated image features, and distilling from recent prompts keeps them.",
        here="A small CLIP (three convolutions, two transformer layers over words) of 2,500 pairs of coloured shapes "
        "in three looks, one a seed; 32 of 64 shape-colour pairs are base classes with 4 images each in an unseen look "
        "(stripes), 24 are new, 8 give names for neither; every shape and colour is in both. Four context vectors "
        "from 'a photo of a', 200 epochs, batch 64, rate 0.02 for all. OGEN knows the new names, as the released code "
        "has it; 'other names' does not. Tried before the thresholds were committed, on a seed that is not judged: "
        "base/new .469/.477 zero-shot, .820/.684 for CoOp, .814/.672 and .761/.648 for KgCoOp at 1 and 8, .753/.670 "
        "for OGEN without and .761/.677 with a teacher. No pitfall was seen at 1, 4 or 16 images a class, in "
        "stripes or tint, nor with other shapes as new classes: new accuracy rose with training, so claims on the "
        "pitfall were expected to fail. That trial and a first record (.742/.790 for OGEN) weighed the features of "
        "neighbours and unknown names three times as much as the released code does: found and set right afterwards, "
        "the thresholds as they were, and nothing else.",
        not_here="Real prompts and photographs, the eleven data sets, 16 images a class, 8 to 16 vectors (random or "
        "repeated words took the text tower too far from what it knows), the size of gains.",
        full="$UNSEEN_CLIP, a dual encoder such as transformers:openai/clip-vit-base-patch16, and $UNSEEN_BASE_TO_NEW, "
        "a folder with base/train/NAME/*, base/test/NAME/*, new/NAME/* and names.txt of other classes (the paper: "
        "CoOp's eleven data sets). 200 epochs, batch 32, rate 0.002. One GPU.",
    )
    conditions = (
        Condition("zero-shot", "reference", "the hand prompt"),
        Condition("CoOp", "baseline", "prompt tuning by cross-entropy"),
        Condition("early stopping", "baseline", "CoOp at the epoch of best base validation accuracy"),
        Condition("KgCoOp 1", "baseline", "with a penalty to the zero-shot prompts, weight 1"),
        Condition("KgCoOp 8", "baseline", "the same, weight 8 (published)"),
        Condition("OGEN, no teacher", "method", "generated features; new names known"),
        Condition("OGEN", "method", "with the teacher of recent prompts"),
        Condition("OGEN, other names", "method", "unknown names independent of the new classes"),
        Condition("untrained generator", "control", "OGEN with a generator of random weights"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        **FINAL,
        **{
            f"{what} at {e}": f"{what} accuracy after {e} epochs" for e in WATCHED for what in ("base", "new")
        },
    }
    claims = (
        Claim(
            "tuning learns",
            "Base accuracy of CoOp above zero-shot.",
            value=_above("base", "CoOp", "zero-shot"),
            at_least=0.1,
            control=True,
        ),
        Claim(
            "pitfall over time",
            "New accuracy of CoOp after 10 epochs above that after 200.",
            value=lambda m: m["CoOp", "new at 10"] - m["CoOp", "new at 200"],
            at_least=0.03,
        ),
        Claim(
            "pitfall against zero-shot",
            "New accuracy of zero-shot above CoOp after 200 epochs.",
            value=_above("new", "zero-shot", "CoOp"),
            at_least=0.0,
        ),
        Claim(
            "OGEN helps new classes",
            "New accuracy of OGEN above CoOp.",
            value=_above("new", "OGEN", "CoOp"),
            at_least=0.03,
        ),
        Claim(
            "base classes stay",
            "Base accuracy of OGEN above CoOp.",
            value=_above("base", "OGEN", "CoOp"),
            at_least=-0.01,
        ),
        Claim(
            "the teacher adds",
            "New accuracy of OGEN above OGEN without teacher.",
            value=_above("new", "OGEN", "OGEN, no teacher"),
            at_least=0.005,
        ),
        Claim(
            "better than a penalty",
            "Harmonic mean of OGEN above the better KgCoOp, less one standard error.",
            pooled=_above_penalty,
            at_least=0.0,
        ),
        Claim(
            "the generator matters",
            "New accuracy of OGEN above OGEN with an untrained generator.",
            value=_above("new", "OGEN", "untrained generator"),
            at_least=0.01,
        ),
        Claim(
            "the leak of names",
            "New accuracy of OGEN above OGEN that knows other names only.",
            value=_above("new", "OGEN", "OGEN, other names"),
        ),
        Claim(
            "elsewhere",
            "New accuracy in other looks: zero-shot above CoOp.",
            value=_above("new elsewhere", "zero-shot", "CoOp"),
        ),
        Claim(
            "OGEN elsewhere",
            "New accuracy in other looks: OGEN above CoOp.",
            value=_above("new elsewhere", "OGEN", "CoOp"),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if scale == "full":
            return _full_rows(seed)
        return tiny_rows(seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.4), layout="constrained")
        axes = figure.subplots(1, 3)
        places = np.arange(len(WATCHED))
        shifts = dict(zip(_COLOURS, np.linspace(-0.3, 0.3, len(_COLOURS)), strict=True))
        for what, here in zip(("base", "new"), axes[:2], strict=True):
            for name, colour in _COLOURS.items():
                if name == "zero-shot":
                    here.axhline(_interval(table, name, what).estimate, color=colour, ls=":", label=name)
                    continue
                found = [_interval(table, name, f"{what} at {epoch}") for epoch in WATCHED]
                mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
                here.errorbar(
                    places + shifts[name], mean, yerr=[mean - low, high - mean], marker="o", ms=3, lw=1.2,
                    elinewidth=0.7, color=colour, label=name,
                )  # fmt: skip
            here.set_xticks(places, WATCHED)
            here.set(title=f"accuracy on {what} classes", xlabel="epochs")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(
            *handles, loc="outside lower center", ncols=len(_COLOURS), frameon=False, fontsize="small"
        )
        names = [c.name for c in self.conditions]
        found = [_interval(table, name, "harmonic") for name in names]
        mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
        axes[2].errorbar(mean, range(len(names)), xerr=[mean - low, high - mean], fmt="o", color="#000000")
        axes[2].set_yticks(range(len(names)), names)
        axes[2].invert_yaxis()
        axes[2].set(title="harmonic mean at the end", xlabel="means and 95 % intervals over seeds")
        for here in axes:
            here.grid(alpha=0.3)
            here.spines[["top", "right"]].set_visible(False)
        return figure


def _interval(table: pd.DataFrame, condition: str, metric: str) -> Any:
    return mean_interval(table.value[(table.condition == condition) & (table.metric == metric)])


Labelled = tuple[Tensor, Tensor]
"""Features (N, D) of length 1 and labels (N,)."""


@dataclass(frozen=True)
class Task:
    """Names of base, new and other classes; few training images, base validation, and judges here and elsewhere."""

    base: Sequence[str]
    new: Sequence[str]
    other: Sequence[str]
    train: Labelled
    validation: Labelled
    here: BaseToNew
    elsewhere: BaseToNew


class Watched(BaseToNew):
    """Keeps the contexts of the epochs that are judged."""

    def __init__(self, judge: BaseToNew):
        vars(self).update(vars(judge))
        self.contexts: list[Tensor] = []

    def __call__(self, prompts: Any) -> Judgement:
        self.contexts.append(prompts.context.detach().clone())
        return super().__call__(prompts)


def tuning_rows(
    clip: PromptableEncoder,
    task: Task,
    seed: int,
    *,
    epochs: int = EPOCHS,
    watched: Sequence[int] = WATCHED,
    batch: int = BATCH,
    rate: float = LEARNING_RATE,
) -> list[Row]:
    """Rows of every condition on one task; the metrics of `watched` epochs are named after WATCHED."""
    rows = _final("zero-shot", LearntPrompts(clip), task)
    for condition in TRAINED:
        watch = Watched(task.here)
        tuner = PromptTuner(
            clip, task.base, regularizer=_regularizer(condition, clip, task, seed),
            teacher=LocalMeanTeacher(every=1) if condition in ("OGEN", "OGEN, other names") else None,
            epochs=epochs, batch_size=batch, learning_rate=rate, seed=seed,
        )  # fmt: skip
        tuner.fit(*task.train, judge=watch, judged_epochs=watched)
        judged = [e.judged for e in tuner.history if e.judged is not None]
        for name, found in zip(WATCHED, judged, strict=True):
            rows += [
                Row(condition, f"base at {name}", found.base),
                Row(condition, f"new at {name}", found.new),
            ]
        rows += _final(condition, tuner.prompts, task)
        if condition == "CoOp":
            rows += _final("early stopping", _stopped(clip, task, watch.contexts), task)
    return rows


def _regularizer(condition: str, clip: PromptableEncoder, task: Task, seed: int) -> Any:
    if condition == "CoOp":
        return None
    if condition.startswith("KgCoOp"):
        return ZeroShotPenalty(float(condition.split()[1]))
    generator = ClassConditionalGenerator(task.train[0].shape[1], seed=seed).to(task.train[0].device)
    if condition == "untrained generator":
        generator.requires_grad_(False)
        return UnknownClassRegularizer(generator, task.new, warm_up=0.0, knows_judged_names=True)
    if condition == "OGEN, other names":
        return UnknownClassRegularizer(generator, task.other)
    return UnknownClassRegularizer(generator, task.new, knows_judged_names=True)


def _stopped(clip: PromptableEncoder, task: Task, contexts: list[Tensor]) -> LearntPrompts:
    """The prompt of the first watched epoch with the best accuracy on base validation images."""
    prompts, best = LearntPrompts(clip), -1.0
    chosen = contexts[-1]
    x, y = task.validation
    for context in contexts:
        prompts.context.data = context
        accuracy = float(((x @ prompts.encode(task.base).T).argmax(1) == y).double().mean())
        if accuracy > best:
            best, chosen = accuracy, context
    prompts.context.data = chosen
    return prompts


def _final(condition: str, prompts: LearntPrompts, task: Task) -> list[Row]:
    here, there = task.here(prompts), task.elsewhere(prompts)
    values = (
        here.base, here.new, here.harmonic, here.joint_new, here.base_error, here.new_error, there.base,
        there.new,
    )  # fmt: skip
    return [Row(condition, what, value) for what, value in zip(FINAL, values, strict=True)]


def tiny_rows(
    seed: int, *, pairs: int = 2500, clip_epochs: int = 20, tests: int = 20, **options: Any
) -> list[Row]:
    """Everything of one seed: its own CLIP, split of the pairs and images."""
    clip = _clip_of_source_looks(derive_seed(seed, 3), pairs, clip_epochs)
    generator = torch.Generator().manual_seed(derive_seed(seed, 4))
    even = [p for p in PAIRS if sum(p) % 2 == 0]
    odd = [p for p in PAIRS if sum(p) % 2]
    odd = [odd[i] for i in torch.randperm(len(odd), generator=generator).tolist()]
    new, other = odd[:24], odd[24:]

    def drawn(chosen: Sequence[tuple[int, int]], count: int, looks: Sequence[str]) -> Labelled:
        shape, colour = torch.tensor(chosen).repeat(count * len(looks), 1).T
        look = torch.tensor([DOMAINS.index(name) for name in looks]).repeat_interleave(len(chosen) * count)
        labels = torch.arange(len(chosen)).repeat(count * len(looks))
        return image_features(clip, render(shape, colour, look, generator)), labels

    names = [[f"c{colour} {SHAPES[shape]}" for shape, colour in part] for part in (even, new, other)]
    judges = [
        BaseToNew(clip, drawn(even, tests, looks), names[0], drawn(new, tests, looks), names[1])
        for looks in ((TASK,), OTHERS)
    ]
    train, validation = drawn(even, SHOTS, (TASK,)), drawn(even, SHOTS, (TASK,))
    task = Task(names[0], names[1], names[2], train, validation, judges[0], judges[1])
    return tuning_rows(clip, task, seed, **options)


def _clip_of_source_looks(seed: int, pairs: int, epochs: int) -> WordClip:
    generator = torch.Generator().manual_seed(seed)
    shape, colour = torch.randint(8, (2, pairs), generator=generator)
    sources = torch.tensor([DOMAINS.index(name) for name in SOURCE])
    look = sources[torch.randint(len(SOURCE), (pairs,), generator=generator)]
    told = torch.rand(pairs, generator=generator) < 0.5
    captions = [
        f"a photo of a c{c} {SHAPES[s]}" + (f" {DOMAINS[d]}" if say else "")
        for s, c, d, say in zip(shape.tolist(), colour.tolist(), look.tolist(), told.tolist(), strict=True)
    ]
    images = render(shape, colour, look, generator)
    return train_word_clip(images, captions, WORDS, seed=seed, epochs=epochs, width=16)


def _full_rows(seed: int, shots: int = 16, **options: Any) -> list[Row]:
    """The same on a user's CLIP and folders of images; "elsewhere" is the same test again."""
    from pathlib import Path

    from unseen.networks.dual_encoder import dual_encoder
    from unseen.papers.lapt import folder_features
    from unseen.prompts import promptable

    folder = Path(os.environ.get("UNSEEN_BASE_TO_NEW", ""))
    if "UNSEEN_BASE_TO_NEW" not in os.environ or not (folder / "names.txt").is_file():
        raise InputError(
            f"folder {str(folder)!r}",
            "holds no names.txt",
            "Set UNSEEN_BASE_TO_NEW to a folder as the card describes.",
        )
    if "UNSEEN_CLIP" not in os.environ:
        raise InputError(
            "UNSEEN_CLIP", "is not set", 'Name an encoder: "transformers:openai/clip-vit-base-patch16".'
        )
    clip = promptable(dual_encoder(os.environ["UNSEEN_CLIP"]))
    base, new = (
        sorted(p.name for p in (folder / part).iterdir() if p.is_dir()) for part in ("base/train", "new")
    )
    other = [line.strip() for line in (folder / "names.txt").read_text(encoding="utf-8").splitlines()]
    x, y = folder_features(clip, folder / "base/train", base)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    place = torch.empty_like(y)  # how manyth of its class an image is in a random order
    for label in range(len(base)):
        own = order[y[order] == label]
        place[own] = torch.arange(len(own))
    few, more = place < shots, (place >= shots) & (place < 2 * shots)
    more = more if more.any() else few
    tests = [folder_features(clip, folder / "base/test", base), folder_features(clip, folder / "new", new)]
    judge = BaseToNew(clip, tests[0], base, tests[1], new)
    task = Task(
        base, new, [name for name in other if name], (x[few], y[few]), (x[more], y[more]), judge, judge
    )
    return tuning_rows(clip, task, seed, **{"batch": 32, "rate": 0.002, **options})


# Colours after Okabe & Ito (2008).
_COLOURS = {
    "zero-shot": "#999999",
    "CoOp": "#000000",
    "KgCoOp 1": "#56b4e9",
    "KgCoOp 8": "#e69f00",
    "OGEN, no teacher": "#cc79a7",
    "OGEN": "#0072b2",
    "OGEN, other names": "#009e73",
}
