"""Battle of the Backbones: do rankings of pretrained backbones agree across tasks, and who comes first and last?"""

from __future__ import annotations

import itertools
import os
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.arena.backbones import Candidate
from unseen.arena.baselines import Pixels
from unseen.arena.protocols import (
    Budget,
    FewShot,
    FineTune,
    LinearProbe,
    OODEval,
    RegressionProbe,
    Retrieval,
    Task,
)
from unseen.arena.ranking import task_correlation, zscore_ranking
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.papers.small_backbones import KNOWN, Recipe, at_side, centred, digits_at_hand, pretrain
from unseen.papers.tiny_world import DOMAINS, SHAPES, render
from unseen.registry import papers
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

LARGE, SMALL = 6000, 1500
POOL: dict[str, Recipe] = {
    "cnn random": Recipe("cnn", "none", 0),
    "cnn supervised, large": Recipe("cnn", "supervised", LARGE),
    "cnn supervised, small": Recipe("cnn", "supervised", SMALL),
    "cnn contrastive, large": Recipe("cnn", "contrastive", LARGE),
    "cnn contrastive, small": Recipe("cnn", "contrastive", SMALL),
    "cnn masked, large": Recipe("cnn", "masked", LARGE),
    "cnn rotation, large": Recipe("cnn", "rotation", LARGE),
    "cnn caption, large": Recipe("cnn", "caption", LARGE),
    "cnn caption, small": Recipe("cnn", "caption", SMALL),
    "vit random": Recipe("vit", "none", 0),
    "vit supervised, large": Recipe("vit", "supervised", LARGE),
    "vit contrastive, large": Recipe("vit", "contrastive", LARGE),
    "vit masked, large": Recipe("vit", "masked", LARGE),
    "vit caption, large": Recipe("vit", "caption", LARGE),
}
PIXELS = "pixels"
SELF_SUPERVISED = ("contrastive", "masked", "rotation")
LOOKS = ("sketch", "negative", "blur", "dark", "stripe")
"""Looks of TinyWorld that neither pretraining nor a probe's training has seen."""
FOLDER = "image folder: ood"
PUBLIC = (
    "random:efficientnet-lite0",
    "efficientnet-lite0",
    "efficientnet-lite2",
    "timm:convnext_base.fb_in22k",
    "timm:swinv2_base_window12_192.ms_in22k",
    "timm:vit_base_patch16_224.dino",
    "timm:vit_base_patch16_224.mae",
    "open_clip:ViT-B-16/openai",
)
"""Backbones of the paper that other libraries bring, for the user's images."""

METRICS: dict[str, str] = {
    "probe: digits": "accuracy of a linear head on UCI digits",
    "probe: TinyWorld": "accuracy of a linear head, 64 shape and colour classes in the looks of pretraining",
    "fine-tune: digits": "accuracy on UCI digits after training the whole backbone on 360",
    "few-shot: TinyWorld": "accuracy of a linear head from 5 examples of each of 64 classes",
    **{
        f"ood: {look}": f"accuracy on shapes looking like {look}, head trained on photo and tint"
        for look in LOOKS
    },
    "ood: MNIST to UCI": "accuracy on UCI digits of a head trained on MNIST",
    "retrieval: digits": "mAP of cosine similarity, UCI digits",
    "retrieval: TinyWorld": "mAP of cosine similarity, 64 shape and colour classes",
    "place: TinyWorld": "R^2 of the place of the object, by ridge regression",
}


def results(measured: Measured) -> pd.DataFrame:
    """One seed's values of the pool as the arena's table; pixels stay outside, as they would move every z."""
    rows = []
    for (condition, metric), value in measured.items():
        if condition in POOL and metric in METRICS:
            task, _, setting = metric.partition(": ")
            rows.append((condition, task, setting, "R2" if task == "place" else "accuracy", 0, value))
    return pd.DataFrame(rows, columns=["backbone", "task", "setting", "metric", "seed", "value"])


def agreeing_pairs(frame: pd.DataFrame, least: float = 0.6) -> float:
    """Share of pairs of tasks whose mean z correlate (Pearson) at `least`."""
    correlation = task_correlation(frame)
    pairs = itertools.combinations(correlation.index, 2)
    return float(np.mean([correlation.loc[a, b] >= least for a, b in pairs]))


def shuffled(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The same values in each setting, given to backbones at random: what agreement chance brings."""
    generator = np.random.default_rng(seed)
    parts = [
        part.assign(value=generator.permutation(part.value.to_numpy()))
        for _, part in frame.groupby(["task", "setting"], sort=False)
    ]
    return pd.concat(parts)


def _chance_pairs(measured: Measured) -> float:
    """Mean over 20 shufflings."""
    frame = results(measured)
    return float(np.mean([agreeing_pairs(shuffled(frame, seed)) for seed in range(20)]))


def _scores(measured: Measured) -> pd.Series:
    return zscore_ranking(results(measured)).score


def _best_taught(measured: Measured) -> float:
    """The best supervised or caption-contrastive backbone of the large set against the best of all others."""
    scores = _scores(measured)
    taught = [n for n, r in POOL.items() if r.objective in ("supervised", "caption") and r.images == LARGE]
    return float(scores[taught].max() - scores.drop(taught).max())


def _ssl_gap(architecture: str) -> Any:
    def gap(measured: Measured) -> float:
        scores = _scores(measured)
        own = [n for n, r in POOL.items() if r.architecture == architecture and r.images == LARGE]
        best = max(scores[n] for n in own if POOL[n].objective in SELF_SUPERVISED)
        return float(best - scores[f"{architecture} supervised, large"])

    return gap


def _best_random_above_any(measured: Measured) -> float:
    scores = _scores(measured)
    untrained = scores.index.str.endswith(" random")
    return float(scores[untrained].max() - scores[~untrained].min())


def _random_above(measured: Measured) -> float:
    """By how much a random network is above the worst pretrained one of its architecture, at most."""
    scores = _scores(measured)
    gaps = []
    for architecture in ("cnn", "vit"):
        trained = [n for n, r in POOL.items() if r.architecture == architecture and r.objective != "none"]
        gaps.append(scores[f"{architecture} random"] - scores[trained].min())
    return float(max(gaps))


def _familiar_and_unseen(measured: Measured) -> float:
    """Spearman correlation of the z of familiar data (probe, fine-tune, few-shot) and of unseen looks and digits."""
    from scipy.stats import spearmanr

    tasks = zscore_ranking(results(measured), by="task")
    familiar = tasks[["probe", "fine-tune", "few-shot"]].mean(axis=1)
    return float(spearmanr(familiar, tasks["ood"]).statistic)


def _beats_pixels(measured: Measured) -> float:
    """Share of settings in which the best backbone of the pool is above raw pixels."""
    wins = []
    for metric in METRICS:
        wins.append(max(measured[name, metric] for name in POOL) > measured[PIXELS, metric])
    return float(np.mean(wins))


@papers.register(
    "backbone-arena",
    summary="Which pretrained backbone? One protocol for many tasks, z-scores",
    paper="Goldblum et al. 2023, arXiv 2310.19909",
)
class BackboneArenaReproduction(Reproduction):
    card = Card(
        number=20,
        title="Battle of the Backbones: A Large-Scale Comparison of Pretrained Models across Computer Vision Tasks",
        authors="Goldblum, Souri, Ni, Shu, Prabhu, Somepalli, Chattopadhyay, Ibrahim, Bardes, Hoffman, Chellappa, "
        "Wilson, Goldstein",
        venue="NeurIPS 2023 Datasets and Benchmarks",
        arxiv="2310.19909",
        claim="Backbones that are good at one task are good at others; supervised ones on much data lead, and "
        "self-supervised ones are highly competitive at equal architecture and data.",
        here="14 backbones of 78-150 k parameters (CNN and ViT; supervised, contrastive, masked, rotation, caption "
        "or no pretraining; 1,500 or 6,000 images of TinyWorld and MNIST at equal steps), thirteen settings in six "
        "tasks on UCI digits, MNIST and TinyWorld; learning rates tried for each backbone at equal budget.",
        not_here="ImageNet-scale pretraining, COCO detection, 60 public checkpoints, effects of scale.",
        full="Longer pretraining, and the public backbones of timm and open_clip on a folder domain/class/image, "
        "each domain unseen in turn; one GPU.",
    )
    conditions = (
        *(
            Condition(
                name,
                "control" if recipe.objective == "none" else "method",
                "no pretraining" if recipe.objective == "none" else "",
            )
            for name, recipe in POOL.items()
        ),
        Condition(PIXELS, "baseline", "8 x 8 pixels, no network; outside the pool of z-scores"),
        *(Condition(name, "reference", "only with --full") for name in PUBLIC),
    )
    metrics: ClassVar[dict[str, str]] = {
        **METRICS,
        FOLDER: "mean accuracy on unseen domains (only with --full)",
    }
    claims = (
        Claim(
            "chance agrees less",
            "With values given to backbones at random, the share of task pairs that correlate at 0.6.",
            value=_chance_pairs,
            at_most=0.2,
            control=True,
        ),
        Claim(
            "tasks agree",
            "Share of task pairs whose mean z over 14 backbones correlate at 0.6 or more.",
            value=lambda m: agreeing_pairs(results(m)),
            at_least=0.7,
        ),
        Claim(
            "taught by labels or captions",
            "z of the best backbone taught by labels or captions on the large set above the best of all others.",
            value=_best_taught,
            at_least=0.0,
        ),
        Claim(
            "self-supervision keeps up: CNN",
            "z of the best self-supervised CNN of the large set against the supervised one: within half.",
            value=_ssl_gap("cnn"),
            at_least=-0.5,
            at_most=0.5,
        ),
        Claim(
            "self-supervision keeps up: ViT",
            "The same for ViTs.",
            value=_ssl_gap("vit"),
            at_least=-0.5,
            at_most=0.5,
        ),
        Claim(
            "random weights come last",
            "z of random weights above the worst pretrained backbone of the same architecture, at most.",
            value=_random_above,
            at_most=0.0,
        ),
        Claim(
            "random weights are the last of all",
            "z of the best random network above the worst pretrained backbone of any architecture. The wider reading "
            "of the claim above, added after its result was known.",
            value=_best_random_above_any,
            at_most=0.0,
        ),
        Claim(
            "familiar data tell",
            "Spearman correlation of z on familiar data and z on unseen looks and digits.",
            value=_familiar_and_unseen,
            at_least=0.6,
        ),
        Claim(
            "better than pixels",
            "Share of the settings in which the best of the pool is above raw pixels.",
            value=_beats_pixels,
            at_least=0.9,
        ),
        Claim(
            "more images",
            "Mean z of the large over the small pretraining set, three objectives at equal steps.",
            value=lambda m: _large_over_small(_scores(m)),
        ),
    )
    seeds = (0, 1, 2)

    def units(self, scale: Scale) -> list[str]:
        return [*POOL, PIXELS, *(PUBLIC if scale == "full" else ())]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit in PUBLIC:
            return [Row(unit, FOLDER, _on_folder(unit, seed))]
        steps = 240 if scale == "laptop" else 10_000
        entrant = Candidate(unit, Pixels(), reads="array", keep_features=False)
        if unit != PIXELS:
            network = pretrain(POOL[unit], seed, steps=steps)
            entrant = Candidate(unit, network, prepare=centred, reads="array", keep_features=False)
        return [Row(unit, name, value) for name, value in judge(entrant, seed, small_tasks()).items()]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        per_seed = [zscore_ranking(results(measured)) for measured in by_seed(table).values()]
        mean = sum(part.loc[list(POOL)] for part in per_seed) / len(per_seed)
        mean = mean.sort_values("score", ascending=False)
        tasks = list(dict.fromkeys(metric.partition(": ")[0] for metric in METRICS))
        shown = mean[[*tasks, "score"]].rename(columns={"score": "overall"})
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        heat, points = figure.subplots(1, 2, width_ratios=(1.35, 1))
        image = heat.imshow(shown, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        for row, column in np.ndindex(*shown.shape):
            value = shown.iloc[row, column]
            colour = "white" if abs(value) > 1.3 else "black"
            heat.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=colour)
        heat.set_xticks(range(shown.shape[1]), shown.columns, rotation=30, ha="right")
        heat.set_yticks(range(len(shown)), shown.index)
        heat.set_title("mean z over settings and seeds")
        figure.colorbar(image, ax=heat, shrink=0.6)
        for objective, colour in _COLOURS.items():
            names = [name for name in mean.index if POOL[name].objective == objective]
            for architecture, marker in (("cnn", "o"), ("vit", "^")):
                own = mean.loc[[name for name in names if POOL[name].architecture == architecture]]
                label = f"{architecture} {objective}" if len(own) else None
                familiar = own[["probe", "fine-tune", "few-shot"]].mean(axis=1)
                points.scatter(familiar, own["ood"], color=colour, marker=marker, s=55, label=label)
        points.set(xlabel="z on familiar data", ylabel="z on unseen looks and digits")
        points.grid(alpha=0.3)
        points.spines[["top", "right"]].set_visible(False)
        points.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


_COLOURS = {
    "none": "#999999",
    "supervised": "#0072b2",
    "contrastive": "#d55e00",
    "masked": "#e69f00",
    "rotation": "#cc79a7",
    "caption": "#009e73",
}


def _large_over_small(scores: pd.Series) -> float:
    pairs = ("supervised", "contrastive", "caption")
    return float(np.mean([scores[f"cnn {o}, large"] - scores[f"cnn {o}, small"] for o in pairs]))


def judge(
    entrant: Candidate, seed: int, tasks: dict[str, Task], budget: Budget | None = None
) -> dict[str, float]:
    """Raw values by the names of METRICS. The name of a task begins with the part before their colon."""
    budget = budget or Budget(trials=5, steps=200, tuning_steps=40, batch=64)
    found = {}
    for name, task in tasks.items():
        group = name.partition(" ")[0]
        for score in task.measure(entrant, budget, seed):
            if score.metric in ("accuracy", "R2", "mAP"):
                setting = score.setting.rpartition(": ")[2]
                found[f"{group}: {setting}"] = score.value
    return found


@lru_cache(maxsize=1)
def small_tasks() -> dict[str, Task]:
    """The tasks, whose images are the same for all backbones and seeds; a seed draws their splits."""
    from unseen.shifts.builtin.digit_images import optdigits

    grey, labels = optdigits()
    uci = _arrays("digits", at_side(grey[:1200]), labels[:1200], [str(d) for d in range(10)])
    digits, numbers = digits_at_hand()
    mnist = _arrays("MNIST", digits[-1500:], numbers[-1500:], [str(d) for d in range(10)])
    world, shape, colour, _, place = _world(1920, KNOWN, seed=1)
    pairs = _arrays("TinyWorld", world, 8 * shape + colour, [f"{s} {c}" for s in SHAPES for c in range(8)])
    looks, looks_shape, _, look, _ = _world(2100, ("photo", "tint", *LOOKS), seed=2)
    shapes = Shift("looks", "array", looks, looks_shape, look, SHAPES, ("photo", "tint", *LOOKS))
    few = uci.subset(torch.arange(600))
    test = _arrays("MNIST to UCI", uci.inputs, uci.labels, uci.classes)
    return {
        "probe 1": LinearProbe(uci),
        "probe 2": LinearProbe(pairs),
        "fine-tune": FineTune(few),
        "few-shot": FewShot(pairs, 5, setting="TinyWorld"),
        "ood 1": OODEval(shapes, ["photo", "tint"], list(LOOKS)),
        "ood 2": OODEval(mnist, ["MNIST"], [test]),
        "retrieval 1": Retrieval(uci),
        "retrieval 2": Retrieval(pairs),
        "place": RegressionProbe(world, place, "TinyWorld", reads="array"),
    }


def _arrays(name: str, images: Tensor, labels: Tensor, classes: Any) -> Shift:
    """A shift of one domain."""
    return Shift(name, "array", images, labels, torch.zeros(len(labels)).long(), tuple(classes), (name,))


def _world(count: int, looks: Any, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images of every shape and colour equally often; shape, colour, number of the look, centre (x, y) in pixels."""
    number = torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, 21)))
    shape, colour = (number % 64 // 8)[order], (number % 8)[order]
    look = number % len(looks)
    domain = torch.tensor([DOMAINS.index(name) for name in looks])[look]
    images = render(shape, colour, domain, torch.Generator().manual_seed(derive_seed(seed, 22)))
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(derive_seed(seed, 22)))
    return images, shape, colour, look, 6 + 3 * draws[:, 1:3]  # render draws size and place first, as here


def _on_folder(name: str, seed: int) -> float:
    """Mean accuracy on each domain of the user's image folder, unseen in turn, of a probe on a public backbone."""
    from unseen.arena.backbones import candidate
    from unseen.arena.pool import tasks_of
    from unseen.papers.left_out_domains import image_folder
    from unseen.shifts.opening import open_shift

    shift, entrant = open_shift(os.fspath(image_folder())), candidate(name)
    budget = Budget(trials=10, steps=2000, batch=512)
    scores = [
        score.value for task in tasks_of(shift, ["ood"]) for score in task.measure(entrant, budget, seed)
    ]
    return float(np.mean(scores))
