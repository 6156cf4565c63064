"""PEGO: do low-rank groups kept orthogonal to pretrained weights, and to each other, generalise better?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.papers.pego_runs import (
    DIVERSIFY,
    DRIFT,
    LAPTOP,
    METHODS,
    PRESERVE,
    SIZE,
    SOURCE,
    UNSEEN,
    UNSEEN_DRIFT,
    WORST,
    tuned_digits,
)
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

LEFT_OUT = "left out"


def _gain(condition: str, over: str, metric: str = UNSEEN) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] - m[over, metric]


def _ratio(condition: str, to: str, metric: str) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] / m[to, metric]


def _share_of_seeds_above(condition: str, other: str) -> Callable[[pd.DataFrame], float]:
    """Share of seeds in which one condition's accuracy on unseen styles is above another's."""
    gain = _gain(condition, other)
    return lambda table: float(np.mean([gain(measured) > 0 for measured in by_seed(table).values()]))


@papers.register(
    "pego",
    summary="Low-rank groups orthogonal to pretrained weights and to each other, on digits in unseen styles",
    paper="Hu et al. 2024, arXiv 2407.15085",
)
class Pego(Reproduction):
    card = Card(
        number=39,
        title="Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for "
        "Domain Generalization",
        authors="Hu, Zhang, Qi, Shi, Gao",
        venue="ECCV 2024",
        arxiv="2407.15085",
        claim="Groups of low-rank updates that are penalised for leaving the orthogonal complement of the pretrained "
        "weights and for resembling each other generalise better to unseen domains than LoRA and full fine-tuning.",
        here="A vision transformer (width 64, depth 3, patches of 7 x 7) pretrained on 36 characters in 21 fonts and "
        "many styles, then tuned with a new head on two plain sources of real digits, 600 images of MNIST and 600 of "
        "optdigits, for 100 steps; judged on other MNIST digits inverted, over a ramp of grey, blurred, noisy and "
        "rotated. Learning rates are chosen by source validation on a seed that is not judged, the step that is kept "
        "by source validation. The penalty has the paper's weight times (768 / 64)^2. The control `shrunk` has "
        "updates as small as PEGO's by a squared norm alone.",
        not_here="CLIP and the five image benchmarks; sources left out in turn.",
        full="CLIP ViT-B/16 ($UNSEEN_BACKBONE, default transformers:openai/clip-vit-base-patch16, read from its "
        "local files) on PACS or any folder domain/class/image ($UNSEEN_IMAGES), each domain left out in turn, "
        "5,000 steps of 32 images a domain. One GPU of 24 GB, 1-2 hours a run. Not run here.",
    )
    conditions = (
        Condition("scratch", "control", "everything trained, without pretraining"),
        Condition("probe", "reference", "the head alone"),
        Condition("full", "baseline", "everything trained"),
        Condition(
            "l2-sp", "baseline", "everything trained, squared distance to the pretrained weights penalised"
        ),
        Condition("lora", "baseline", "one update of rank 16 on query and value"),
        Condition("lora-slow", "baseline", "the same at a quarter of the learning rate"),
        Condition("group", "control", "four updates of rank 4 without a penalty"),
        Condition("shrunk", "control", "the same, made as small as PEGO's by a squared norm"),
        Condition("preserve", "baseline", "orthogonal to the pretrained weights only"),
        Condition("diversify", "baseline", "orthogonal to each other only"),
        Condition("pego", "method", "both penalties"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        SOURCE: "accuracy on held-out digits of the two sources",
        UNSEEN: "accuracy on MNIST digits in unseen styles, mean of five",
        WORST: "the least of the five",
        PRESERVE: "mean |cos| between rows of a frozen matrix and rows of its updates",
        DIVERSIFY: "mean |cos| between rows of two updates of a group",
        SIZE: "Frobenius norm of an update over that of the frozen matrix, mean",
        DRIFT: "1 - CKA of the features with the pretrained ones, source digits",
        UNSEEN_DRIFT: "the same on digits in unseen styles",
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "pretraining carries over",
            "The group without a penalty against the same network from scratch, on unseen styles.",
            value=_gain("group", over="scratch"),
            at_least=0.10,
            control=True,
        ),
        Claim(
            "low rank keeps more",
            "The group without a penalty against full fine-tuning, on unseen styles.",
            value=_gain("group", over="full"),
            at_least=0.02,
        ),
        Claim(
            "the penalty gains",
            "PEGO against the group without a penalty, on unseen styles.",
            value=_gain("pego", over="group"),
            at_least=0.005,
        ),
        Claim(
            "in most seeds",
            "Share of seeds in which PEGO is above the group without a penalty.",
            pooled=_share_of_seeds_above("pego", "group"),
            at_least=0.8,
        ),
        Claim(
            "better than LoRA",
            "PEGO against the better of LoRA of equal parameters and LoRA at a quarter of its rate.",
            value=lambda m: m["pego", UNSEEN] - max(m["lora", UNSEEN], m["lora-slow", UNSEEN]),
            at_least=0.005,
        ),
        Claim(
            "not mere shrinkage",
            "PEGO against a group made as small by a squared norm.",
            value=_gain("pego", over="shrunk"),
            at_least=0.005,
        ),
        Claim(
            "preserves",
            "Mean |cos| of updates with the frozen rows, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", PRESERVE),
            at_most=0.5,
        ),
        Claim(
            "diversifies",
            "Mean |cos| of updates with each other, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", DIVERSIFY),
            at_most=0.5,
        ),
        Claim(
            "drifts less",
            "Drift of the features on unseen styles, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", UNSEEN_DRIFT),
            at_most=0.9,
        ),
        Claim(
            "costs little on the source",
            "PEGO against the group without a penalty, on the sources.",
            value=_gain("pego", over="group", metric=SOURCE),
            at_least=-0.005,
        ),
        Claim(
            "preserve alone", "The first penalty alone against none.", value=_gain("preserve", over="group")
        ),
        Claim("diversify alone", "The second alone against none.", value=_gain("diversify", over="group")),
        Claim("against L2-SP", "PEGO against L2-SP, on unseen styles.", value=_gain("pego", over="l2-sp")),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return list(METHODS) if scale == "laptop" else list(METHODS) + [f"{LEFT_OUT}: {n}" for n in _FULL]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit.startswith(LEFT_OUT):
            from unseen.papers.left_out_domains import left_out_accuracy

            condition = unit.removeprefix(f"{LEFT_OUT}: ")
            accuracy = left_out_accuracy(_FULL[condition], seed, **_full_settings(condition))
            return [Row(condition, LEFT_OUT, float(np.mean(list(accuracy.values()))))]
        return tuned_digits(unit, seed, LAPTOP)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6), layout="constrained")
        accuracy, geometry = figure.subplots(1, 2, width_ratios=(1.3, 1))
        names = [condition.name for condition in self.conditions]
        rows = np.arange(len(names))[::-1]
        for offset, (metric, colour) in zip((0.22, 0, -0.22), _COLOURS.items(), strict=True):
            chosen = table[table.metric == metric]
            found = [mean_interval(chosen.value[chosen.condition == name]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            bars = [mean - low, high - mean]
            accuracy.errorbar(mean, rows + offset, xerr=bars, fmt="o", color=colour, label=metric, ms=5)
        accuracy.set_yticks(rows, names)
        accuracy.set(xlabel="accuracy, mean and 95 % interval over seeds", xlim=(None, 1))
        accuracy.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        runs = table.pivot_table(index=["seed", "condition"], columns="metric", values="value")
        for index, name in enumerate(name for name in names if METHODS[name].trained == "low-rank"):
            points = runs.xs(name, level="condition")
            geometry.scatter(points[PRESERVE], points[UNSEEN], s=36, alpha=0.8, label=name,
                             marker="osD^vPX"[index])  # fmt: skip
        geometry.set(xlabel="mean |cos| of updates with the frozen rows", ylabel="accuracy on unseen styles")
        geometry.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in (accuracy, geometry):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


# The paper's own scale -------------------------------------------------------------------------------------

_FULL: dict[str, Spec] = {
    "full": Spec("erm"),
    "lora": Spec("erm"),
    "group": Spec("erm"),
    "pego": Spec("pego"),
}


def _full_settings(condition: str) -> dict[str, Any]:
    """Of the `Learner`: the paper's (section 4.1), with N = 2 for PACS."""
    backbone = os.environ.get("UNSEEN_BACKBONE", "transformers:openai/clip-vit-base-patch16")
    of = Spec.make("pretrained", name=backbone)
    if condition == "full":
        return {"network": of, "learning_rate": 5e-6, "evaluations": 25}
    rank, groups = (8, 1) if condition == "lora" else (4, 2)
    network = Spec.make("low-rank", of=str(of), rank=rank, groups=groups)
    return {"network": network, "learning_rate": 5e-4, "evaluations": 25}


# Colours after Okabe & Ito (2008).
_COLOURS = {SOURCE: "#0072b2", UNSEEN: "#d55e00", WORST: "#999999"}
