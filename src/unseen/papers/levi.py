"""LEVI: does a small task model beside several frozen layers resist the shortcuts of pretraining and of tuning?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import Spec, papers
from unseen.shifts.shift import Shift
from unseen.studies.statistics import mean_interval

TESTS = ("ID", "OOD-0", "OOD-1", "OOD-2")
MAIN, RANDOM, STRONG, TEXT = "digits", "cue A random", "cue A at 99 %", "text"
FEW = ("linear probe", "fine-tuning", "fine-tuning, 1e-3", "small", "lp + small", "levi")


def _metric(cell: str, test: str) -> str:
    return test if cell == MAIN else f"{cell}: {test}"


def _gain(
    method: str, over: tuple[str, ...], test: str = "OOD-1", cell: str = MAIN
) -> Callable[[Measured], float]:
    """Accuracy of one condition above the best of others."""
    metric = _metric(cell, test)
    return lambda m: m[method, metric] - max(m[other, metric] for other in over)


@papers.register(
    "levi",
    summary="A small task model beside several layers of a frozen network, against fine-tuning and plain ensembles",
    paper="Roh et al. 2024, arXiv 2402.04644",
)
class Levi(Reproduction):
    card = Card(
        number=10,
        title="LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views",
        authors="Roh, Liu, Gui, Yuan, Liu, Whang, Wang, Hong, Chi and Zhao",
        venue="ICML 2024",
        arxiv="2402.04644",
        claim="A frozen pretrained model whose intermediate layers are each joined with a small model that the task "
        "trains generalizes better than fine-tuning, because pretraining's own spurious features count less.",
        here="4,000 MNIST digits at 8 x 8 pixels to pretrain a residual perceptron (4 blocks of 64), cue A beside the "
        "digit agreeing with its class in 95 %; 200 of scikit-learn's digits to fine-tune on, without A, cue B "
        "agreeing in 90 %; about 850 others with A absent and B random (OOD-0), both random (OOD-1) and both wrong "
        "alike (OOD-2). Task model 120-32-32, 200 steps of 32 by AdamW (1e-3; fine-tuned weights 3e-4), the least ID "
        "validation loss decides when. The paper's code is not public: taps, pooling and the mean of logits are a "
        "reading. The number of steps and the share of sentiment words in the text world were chosen on seeds that "
        "are not judged (100, 101), by the accuracy of the small model alone and of the linear probe; LEVI's was "
        "printed beside them.",
        not_here="Large language and vision models, recommendation data, and the claim about cost at scale.",
        full="Image folders domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain left out in "
        "turn: `layerwise-ensemble` on a pretrained backbone ($UNSEEN_BACKBONE, default efficientnet-lite0) with "
        "`each-hypothesis`, against fine-tuning and the small network alone. One GPU.",
    )
    conditions = (
        Condition("zero-shot", "reference", "the pretrained model as it is"),
        Condition("linear probe", "baseline", "a linear layer on the last block"),
        Condition("fine-tuning", "baseline", "all weights, AdamW 3e-4"),
        Condition("fine-tuning, 1e-3", "baseline", "all weights, AdamW 1e-3"),
        Condition("lp-ft", "baseline", "linear probe, then all weights"),
        Condition("wise-ft", "baseline", "mean of the weights before and after fine-tuning"),
        Condition("small", "baseline", "the task model alone"),
        Condition(
            "lp + small", "baseline", "mean output of linear probe and small model: the plain ensemble"
        ),
        Condition("ft + small", "baseline", "mean output of fine-tuned and small model"),
        Condition("probe of all taps", "baseline", "LEVI without a task model"),
        Condition("levi, last tap", "baseline", "LEVI with one view, the last block"),
        Condition("levi, untrained backbone", "control", "LEVI on a backbone that was never pretrained"),
        Condition("levi", "method", "four blocks, each joined with the task model"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "ID": "accuracy on data like those of fine-tuning",
        "OOD-0": "accuracy, cue A absent, B random",
        "OOD-1": "accuracy, both cues random",
        "OOD-2": "accuracy, both cues on the same wrong class",
        "backbone's part": "share of the backbone's views in what the adapting layers add up, mean over taps",
        "trained weights": "weights that fine-tuning changes",
        "weights": "all weights that an answer takes",
        "operations": "floating-point operations of an answer, two a product and sum",
        **{
            f"{cell}: {test}": f"the same {where}"
            for cell, where in (
                (RANDOM, "where fine-tuning has 400 images with cue A at random"),
                (STRONG, "where pretraining has cue A at 99 %"),
                (TEXT, "for sentiment of bags of tokens and a small transformer"),
            )
            for test in TESTS
        },
        "left out": "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "pretraining's cue hurts",
            "What fine-tuning loses when cue A appears at random (OOD-0 minus OOD-1).",
            value=lambda m: m["fine-tuning", "OOD-0"] - m["fine-tuning", "OOD-1"],
            at_least=0.05,
            control=True,
        ),
        Claim(
            "pretraining matters",
            "LEVI against LEVI on a backbone that was never pretrained, OOD-0.",
            value=_gain("levi", ("levi, untrained backbone",), "OOD-0"),
            at_least=0.02,
            control=True,
        ),
        Claim(
            "over fine-tuning",
            "LEVI against fine-tuning at 3e-4, OOD-1.",
            value=_gain("levi", ("fine-tuning",)),
            at_least=0.08,
        ),
        Claim(
            "over the probe",
            "LEVI against the linear probe, OOD-1.",
            value=_gain("levi", ("linear probe",)),
            at_least=0.08,
        ),
        Claim(
            "over the plain ensemble",
            "LEVI against the mean of linear probe and small model, OOD-1.",
            value=_gain("levi", ("lp + small",)),
            at_least=0.01,
        ),
        Claim(
            "several views",
            "All taps against the last one, OOD-1.",
            value=_gain("levi", ("levi, last tap",)),
            at_least=0.02,
        ),
        Claim(
            "the task's own view",
            "LEVI against the probe of all taps, OOD-1.",
            value=_gain("levi", ("probe of all taps",)),
            at_least=0.08,
        ),
        Claim(
            "no worse than the small model",
            "LEVI against the small model alone, OOD-1.",
            value=_gain("levi", ("small",)),
            at_least=-0.02,
        ),
        Claim(
            "better where the cue is absent",
            "LEVI against the small model alone, OOD-0.",
            value=_gain("levi", ("small",), "OOD-0"),
            at_least=0.03,
        ),
        Claim(
            "boundary: tuning can unlearn",
            "With cue A random in the fine-tuning data, fine-tuning at 1e-3 against LEVI, OOD-1.",
            value=_gain("fine-tuning, 1e-3", ("levi",), cell=RANDOM),
            at_least=0.0,
        ),
        Claim(
            "boundary: a cue too strong",
            "With cue A at 99 % in pretraining, the small model alone against LEVI, OOD-1.",
            value=_gain("small", ("levi",), cell=STRONG),
            at_least=0.0,
        ),
        Claim(
            "text: over probe and fine-tuning",
            "Sentiment: LEVI against the better of linear probe and fine-tuning, OOD-1.",
            value=_gain("levi", ("linear probe", "fine-tuning"), cell=TEXT),
            at_least=0.01,
        ),
        Claim(
            "over fine-tuning with the small model",
            "LEVI against the mean of fine-tuned and small model, OOD-1.",
            value=_gain("levi", ("ft + small",)),
        ),
        Claim(
            "what an answer costs",
            "LEVI's operations for each of the pretrained network's, which fine-tuning leaves as they are.",
            value=lambda m: m["levi", "operations"] / m["fine-tuning", "operations"],
        ),
        Claim(
            "what training changes",
            "LEVI's trained weights for each of fine-tuning's.",
            value=lambda m: m["levi", "trained weights"] / m["fine-tuning", "trained weights"],
        ),
        Claim(
            "text: over the plain ensemble",
            "Sentiment: LEVI against the mean of linear probe and small model, OOD-1.",
            value=_gain("levi", ("lp + small",), cell=TEXT),
        ),
    )
    seeds = tuple(range(10))

    def units(self, scale: Scale) -> list[str]:
        return [MAIN, RANDOM, STRONG, TEXT, *(["left out"] if scale == "full" else [])]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit == "left out":
            return left_out(seed)
        from unseen.papers.levi_runs import digits_world, run, text_world

        worlds: dict[str, Callable[[], Any]] = {
            MAIN: lambda: digits_world(seed),
            RANDOM: lambda: digits_world(seed, cue_a_in_tuning=True, tune=400),
            STRONG: lambda: digits_world(seed, agreement=0.99),
            TEXT: lambda: text_world(seed),
        }
        names = tuple(condition.name for condition in self.conditions)
        found = run(worlds[unit](), seed, names if unit == MAIN else FEW)
        return [
            Row(condition, _metric(unit, metric), value)
            for (condition, metric), value in found.items()
            if unit == MAIN or metric in TESTS
        ]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        names = [condition.name for condition in self.conditions]
        _dots(left, table, names, {test: test for test in TESTS})
        cells = {"digits": "OOD-1"} | {cell: _metric(cell, "OOD-1") for cell in (RANDOM, STRONG, TEXT)}
        _dots(right, table, list(FEW), cells)
        left.set(xlabel="accuracy on digits, mean and 95 % interval over seeds")
        right.set(xlabel="OOD-1 accuracy by cell")
        return figure


def _dots(axes: Any, table: pd.DataFrame, names: list[str], metrics: Mapping[str, str]) -> None:
    rows = np.arange(len(names))[::-1]
    for offset, colour, (label, metric) in zip(_OFFSETS, _COLOURS, metrics.items(), strict=True):
        chosen = table[table.metric == metric]
        found = [mean_interval(chosen.value[chosen.condition == name]) for name in names]
        mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
        axes.errorbar(
            mean, rows + offset, xerr=[mean - low, high - mean], fmt="o", color=colour, label=label, ms=4
        )
    axes.set_yticks(rows, names)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


_OFFSETS = (0.24, 0.08, -0.08, -0.24)
_COLOURS = ("#999999", "#009e73", "#d55e00", "#0072b2")
"""After Okabe & Ito (2008)."""


def left_out(seed: int, shift: Shift | None = None, **shared: Any) -> list[Row]:
    """Each domain of image folders left out: the pretrained backbone fine-tuned, the small network, and LEVI of both.

    shared  settings of all learners, in place of DomainBed's
    """
    from unseen.papers.left_out_domains import left_out_accuracy

    backbone = str(Spec.make("pretrained", name=os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")))
    levi = Spec.make("layerwise-ensemble", of=backbone, task_model="cnn", taps=4)
    settings: dict[str, dict[str, Any]] = {
        "fine-tuning": {"objective": Spec("erm")},
        "small": {"objective": Spec("erm"), "network": Spec("cnn"), "learning_rate": 1e-3},
        "levi": {"objective": Spec("each-hypothesis"), "network": levi, "learning_rate": 1e-3},
    }
    return [
        Row(
            condition,
            "left out",
            float(np.mean(list(left_out_accuracy(seed=seed, shift=shift, **own).values()))),
        )
        for condition, own in ((name, {**own, **shared}) for name, own in settings.items())
    ]
