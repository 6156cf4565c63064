"""Machine Vision Therapy: does a judge without names, asked about likely mistakes, improve labels and model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.studies.statistics import mean_interval


def _gain(method: str, over: str, metric: str) -> Callable[[Measured], float]:
    return lambda m: m[method, metric] - m[over, metric]


@papers.register(
    "machine-vision-therapy",
    summary="A judge asked about a model's likely mistakes corrects its labels, and the model learns from them",
    paper="Huang et al. 2024, arXiv 2312.02546",
)
class MachineVisionTherapy(Reproduction):
    card = Card(
        number=32,
        title="Machine Vision Therapy: Multimodal Large Language Models Can Enhance Visual Robustness via Denoising "
        "In-Context Learning",
        authors="Huang, Liu, Dong, Su, Zheng and Liu",
        venue="ICML 2024",
        arxiv="2312.02546",
        claim="A judge that is poor as a classifier corrects a vision model's labels under shift when it is asked "
        "about likely classes beside exemplars, and the model improves by learning from them.",
        here="Coloured shapes of 16 x 16 pixels, 16 classes (8 shapes, red-orange or blue-cyan). Vision model: a small "
        "CLIP of photographs and blurred ones. Judge: a matching network of all looks, trained on 6 of the shapes in "
        "four other colours; it never sees a name. Target: 1,500 images of 4 other looks, half to relabel and learn "
        "from, half to judge by; 5 labelled exemplars a class. Fine-tuning by Adam for 3 epochs. Settled on a seed "
        "that is not judged (100): its rate of 3e-4 rather than 1e-3, by the strongest baseline (the exemplars alone), "
        "and how the judge is trained, by its accuracy in episodes. One vision model and one judge for all seeds.",
        not_here="The behaviour of multimodal language models, prompts, and real data.",
        full="Image folders domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain a target: CLIP "
        "($UNSEEN_TEACHER) judged by a model that sees ($UNSEEN_JUDGE at $UNSEEN_JUDGE_URL), about 18 questions a "
        "doubtful image. One GPU for CLIP, several for the judge's server.",
    )
    conditions = (
        Condition("vision model", "baseline", "its own labels; fine-tuned on them: self-training"),
        Condition("judge alone", "baseline", "the judge as a classifier: the likeliest of all classes"),
        Condition(
            "neighbours", "baseline", "nearest support images in the model's features, k by leave-one-out"
        ),
        Condition("support alone", "baseline", "fine-tuned on the exemplars and their labels, as many steps"),
        Condition("dicl, random candidates", "baseline", "candidates drawn at random"),
        Condition("dicl, softmax candidates", "baseline", "the model's likeliest classes as candidates"),
        Condition("dicl, random exemplars", "baseline", "exemplars drawn at random"),
        Condition("dicl, all asked", "baseline", "no label is accepted at once"),
        Condition("dicl, source support", "baseline", "exemplars of the looks that the model knows"),
        Condition("dicl, blind judge", "control", "the judge sees another image than the one in question"),
        Condition("dicl", "method", "candidates by the transition matrix"),
        Condition("true labels", "reference", "what fine-tuning could reach"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "labels": "accuracy of the labels of the images to learn from",
        "corrected": "wrong labels that became right",
        "destroyed": "right labels that became wrong",
        "queries": "questions an image",
        "used": "accuracy after fine-tuning on the images that were learnt from",
        "held out": "accuracy after fine-tuning on other images of the target",
        "before: held out": "accuracy of the vision model on them as it was",
    }
    claims = (
        Claim(
            "a shift",
            "Accuracy of the vision model on the target.",
            value=lambda m: m["vision model", "labels"],
            at_least=0.35,
            at_most=0.75,
            control=True,
        ),
        Claim(
            "the judge must see",
            "Label accuracy that a blind judge adds.",
            value=_gain("dicl, blind judge", "vision model", "labels"),
            at_most=0.01,
            control=True,
        ),
        Claim(
            "labels improve",
            "Label accuracy, DICL against the vision model.",
            value=_gain("dicl", "vision model", "labels"),
            at_least=0.05,
        ),
        Claim(
            "likely classes",
            "Label accuracy, candidates by the transition matrix against random ones, as many questions.",
            value=_gain("dicl", "dicl, random candidates", "labels"),
            at_least=0.02,
        ),
        Claim(
            "the matrix tells more",
            "Label accuracy, candidates by the transition matrix against the model's likeliest.",
            value=_gain("dicl", "dicl, softmax candidates", "labels"),
            at_least=0.005,
        ),
        Claim(
            "the model helps the judge",
            "Label accuracy, DICL against the judge as a classifier.",
            value=_gain("dicl", "judge alone", "labels"),
            at_least=0.01,
        ),
        Claim(
            "the model improves",
            "Held-out accuracy after therapy against before.",
            value=lambda m: m["dicl", "held out"] - m["vision model", "before: held out"],
            at_least=0.03,
        ),
        Claim(
            "over self-training",
            "Held-out accuracy after therapy against self-training.",
            value=_gain("dicl", "vision model", "held out"),
            at_least=0.02,
        ),
        Claim(
            "not the exemplars' labels",
            "Held-out accuracy after therapy against fine-tuning on the exemplars.",
            value=_gain("dicl", "support alone", "held out"),
            at_least=0.01,
        ),
        Claim(
            "over neighbours",
            "Held-out accuracy after therapy against learning from the neighbours' labels.",
            value=_gain("dicl", "neighbours", "held out"),
            at_least=0.01,
        ),
        Claim(
            "exemplars of the source",
            "Label accuracy that DICL adds with exemplars of the source.",
            value=_gain("dicl, source support", "vision model", "labels"),
        ),
        Claim(
            "retrieval",
            "Label accuracy, exemplars of like probability against random ones.",
            value=_gain("dicl", "dicl, random exemplars", "labels"),
        ),
        Claim(
            "what acceptance costs",
            "Label accuracy, every image asked about against DICL.",
            value=_gain("dicl, all asked", "dicl", "labels"),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if scale == "full":
            from unseen.papers.machine_vision_therapy_full import therapy

            found = therapy(seed)
        else:
            from unseen.papers.machine_vision_therapy_runs import run

            found = run(seed)
        return [Row(condition, metric, value) for (condition, metric), value in found.items()]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.8), layout="constrained")
        axes = figure.subplots()
        names = [condition.name for condition in self.conditions]
        rows = np.arange(len(names))[::-1]
        before = table.value[table.metric == "before: held out"].mean()
        for offset, (metric, colour) in zip((0.15, -0.15), _COLOURS.items(), strict=True):
            chosen = table[table.metric == metric]
            present = [name for name in names if (chosen.condition == name).any()]
            found = [mean_interval(chosen.value[chosen.condition == name]) for name in present]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            places = rows[[names.index(name) for name in present]] + offset
            label = {"labels": "labels", "held out": "the model after learning them"}[metric]
            axes.errorbar(
                mean, places, xerr=[mean - low, high - mean], fmt="o", color=colour, label=label, ms=5
            )
        axes.axvline(before, color="#999999", linewidth=1, linestyle=":", label="vision model as it was")
        axes.set(xlabel="accuracy on the target, mean and 95 % interval over seeds")
        axes.set_yticks(rows, names)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        return figure


_COLOURS = {"labels": "#e69f00", "held out": "#0072b2"}
"""After Okabe & Ito (2008)."""
