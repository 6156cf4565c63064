"""Diversification: do the loss, the unlabelled data and the learner decide together whether it helps?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.errors import UnseenWarning
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEET = {"d-bat": 0.0, "divdis": 0.5, "divdis-seq": 0.5}
"""Where the paper's theory puts each method's best ratio."""
MISMATCHED = {"d-bat": 0.5, "divdis": 0.0}
COUNTS = (2, 4, 8)
ENSEMBLE, LABELS = "erm ensemble", "labels"
KINDS = ("other architecture", "other initialization")
METHODS = (ENSEMBLE, *SWEET)


def at(method: str, ratio: float, extra: str = "") -> str:
    """Name of a condition."""
    return f"{method} at {ratio:g}" + (f", {extra}" if extra else "")


def objective(method: str, penalty: float, count: int = 2) -> Spec:
    """The objective of a method with `count` hypotheses, at the papers' weights."""
    if method == "divdis":
        return Spec.make("divdis", heads=count)
    if method == "divdis-seq":
        return Spec.make("divdis-seq", members=count)
    return Spec.make("d-bat", members=count, penalty_weight=penalty if method == "d-bat" else 0.0)


def _lead(method: str) -> Callable[[pd.DataFrame], float]:
    """Mean best accuracy at the expected ratio above the highest at any other."""

    def lead(table: pd.DataFrame) -> float:
        best = table[table.metric == "best"].groupby("condition").value.mean()
        sweet = SWEET[method]
        return float(best[at(method, sweet)] - max(best[at(method, r)] for r in RATIOS if r != sweet))

    return lead


def _drop(method: str, other: float) -> Callable[[Measured], float]:
    return lambda m: m[at(method, SWEET[method]), "best"] - m[at(method, other), "best"]


def _most_heads_gain(m: Measured) -> float:
    """The most that 4 or 8 hypotheses gain over 2 at the mismatched ratio, each selected on a held-out half."""
    return max(
        m[at(method, ratio, f"K={count}"), "selected"] - m[at(method, ratio), "selected"]
        for method, ratio in MISMATCHED.items()
        for count in COUNTS[1:]
    )


def _learners(m: Measured, method: str, ratio: float) -> dict[str, float]:
    return {kind: m[at(method, ratio, kind), "best"] for kind in ("", *KINDS)}


def _spread(m: Measured) -> float:
    """Best minus worst learner, mean over two methods and two ratios."""
    found = [_learners(m, method, ratio).values() for method in MISMATCHED for ratio in (0.0, 0.5)]
    return float(np.mean([max(values) - min(values) for values in found]))


def _rank_changes(m: Measured) -> float:
    """Share of the two methods whose order of learners is not the same at ratios 0 and 0.5."""
    orders = {
        (method, ratio): sorted(own := _learners(m, method, ratio), key=own.__getitem__)
        for method in MISMATCHED
        for ratio in (0.0, 0.5)
    }
    return float(np.mean([orders[method, 0.0] != orders[method, 0.5] for method in MISMATCHED]))


@papers.register(
    "diversification",
    summary="D-BAT and DivDis need opposite unlabelled data, and more hypotheses do not repair a mismatch",
    paper="Benoit et al. 2024, arXiv 2312.16313",
)
class Diversification(Reproduction):
    card = Card(
        number=1,
        title="Unraveling the key components of OOD generalization via diversification",
        authors="Benoit, Jiang, Atanov, Kar, Rigotti and Zamir",
        venue="ICLR 2024",
        arxiv="2312.16313",
        claim="Whether diversification finds the transferable cue depends on the spurious ratio of its unlabelled "
        "data, which must suit the diversity loss (0 for D-BAT, 0.5 for DivDis), and on the learner; more "
        "hypotheses do not repair a mismatch.",
        here="Dominoes of real MNIST digits at 14 x 14: 0/1 above 4/9, which is the label and agrees with the "
        "upper digit in all 1,200 training dominoes; 1,200 unlabelled ones at spurious ratios 0 to 1, judged on "
        "1,000 balanced ones, digits disjoint. 392-128-2 perceptrons (DivDis: heads on one hidden layer), Adam "
        "1e-3, batches of 128, 600 steps a member, D-BAT weight 1, DivDis weights 10 and 10, the same at every "
        "ratio. A small CNN and a perceptron pretrained on dominoes of other digits are the other learners. On "
        "a seed that is not judged, ratios 0, 0.5 and 1 were tried once, with these settings. Of the claim on more "
        "hypotheses: its number is the largest of four gains in each seed, which noise raises; apart, none of the "
        "four is above 0.04 in the mean of seeds, and D-BAT's are 0 or below.",
        not_here="ImageNet pretraining, Office-Home, and label splits built against a given algorithm.",
        full="Waterbirds without the minority groups in training and ID validation ($UNSEEN_DATA/waterbirds: "
        "metadata.csv and images), a fine-tuned pretrained backbone ($UNSEEN_BACKBONE), a ResNet and a CNN from "
        "scratch; one GPU a run.",
    )
    conditions = (
        *(
            Condition(
                at(method, ratio),
                "baseline" if method == ENSEMBLE else "method",
                "no diversity loss" if method == ENSEMBLE else f"unlabelled data at spurious ratio {ratio:g}",
            )
            for method in METHODS
            for ratio in (RATIOS if method != ENSEMBLE else (0.5,))
        ),
        *(
            Condition(at(method, ratio, f"K={count}"), "method", "mismatched ratio, more hypotheses")
            for method, ratio in MISMATCHED.items()
            for count in COUNTS[1:]
        ),
        *(
            Condition(at(method, ratio, kind), "method", "another learner")
            for method in MISMATCHED
            for ratio in (0.0, 0.5)
            for kind in KINDS
        ),
        Condition(
            LABELS, "reference", "no diversity loss, trained on the pool with its labels, at ratio 0.5"
        ),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "best": "accuracy on balanced dominoes of the hypothesis that is best on them (an oracle's choice)",
        "selected": "accuracy on one half of the hypothesis that is best on the other half, mean of both ways",
        "mean": "mean accuracy of the hypotheses",
        "ensemble": "accuracy of the mean of their probabilities",
        "worst group": "accuracy of the selected hypothesis in its worst (label, cue) group",
        "agreement": "share of unlabelled examples on which two hypotheses predict the same",
    }
    claims = (
        Claim(
            "underspecified",
            "Without a diversity loss the best of two members is near chance.",
            value=lambda m: abs(m[at(ENSEMBLE, 0.5), "best"] - 0.5),
            at_most=0.08,
            control=True,
        ),
        Claim(
            "learnable",
            "With labels that tell the cues apart the meant one is learned.",
            value=lambda m: m[LABELS, "best"],
            at_least=0.90,
            control=True,
        ),
        Claim(
            "no information at ratio 1",
            "With unlabelled data like the training data all methods stay near chance: their largest distance.",
            value=lambda m: max(abs(m[at(method, 1.0), "best"] - 0.5) for method in SWEET),
            at_most=0.08,
            control=True,
        ),
        Claim(
            "D-BAT is best at 0",
            "Best-hypothesis accuracy at ratio 0 minus the highest at any other ratio (means over seeds).",
            pooled=_lead("d-bat"),
            at_least=0.0,
        ),
        Claim(
            "DivDis is best at 0.5",
            "Best-hypothesis accuracy at ratio 0.5 minus the highest at any other ratio (means over seeds).",
            pooled=_lead("divdis"),
            at_least=0.0,
        ),
        Claim("DivDis-Seq is best at 0.5", "The same.", pooled=_lead("divdis-seq"), at_least=0.0),
        Claim(
            "D-BAT off its ratio",
            "What D-BAT loses from ratio 0 to 0.5.",
            value=_drop("d-bat", 0.5),
            at_least=0.08,
        ),
        Claim(
            "DivDis off its ratio",
            "What DivDis loses from ratio 0.5 to 0.",
            value=_drop("divdis", 0.0),
            at_least=0.08,
        ),
        Claim(
            "DivDis-Seq off its ratio",
            "What DivDis-Seq loses from ratio 0.5 to 0.",
            value=_drop("divdis-seq", 0.0),
            at_least=0.08,
        ),
        Claim(
            "more hypotheses do not help",
            "The most that K = 4 or 8 gain over K = 2 off the sweet ratio, hypotheses selected on a held-out half.",
            value=_most_heads_gain,
            at_most=0.05,
        ),
        Claim(
            "learners differ",
            "Best minus worst of three learners, mean over methods and ratios.",
            value=_spread,
        ),
        Claim(
            "order of learners changes",
            "Share of methods whose order of learners differs between ratios 0 and 0.5.",
            value=_rank_changes,
        ),
    )

    def units(self, scale: Scale) -> list[str]:
        return ["ratios", "hypotheses", "learners"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers.diversification_setups import LAPTOP, full_setup

        return measure(unit, seed, LAPTOP if scale == "laptop" else full_setup())

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.5, 4), layout="constrained")
        ratios, counts, learners = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1.2))
        chosen = {metric: table[table.metric == metric] for metric in ("best", "selected")}

        def curve(axes: Any, metric: str, names: list[str], x: Any, label: str, colour: str) -> None:
            rows = chosen[metric]
            found = [mean_interval(rows.value[rows.condition == name]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            axes.errorbar(x, mean, yerr=[mean - low, high - mean], fmt="o-", ms=4, color=colour, label=label)

        for method, colour in _COLOURS.items():
            curve(ratios, "best", [at(method, r) for r in RATIOS], RATIOS, method, colour)
        for method, ratio in MISMATCHED.items():
            names = [at(method, ratio, "" if k == 2 else f"K={k}") for k in COUNTS]
            curve(counts, "selected", names, range(len(COUNTS)), f"{method} at {ratio:g}", _COLOURS[method])
            for other, style in ((0.0, -0.08), (0.5, 0.08)):
                names = [at(method, other, kind) for kind in ("", *KINDS)]
                x = np.arange(3) + style
                curve(learners, "best", names, x, f"{method} at {other:g}", _SHADES[method, other])
        ratios.set(xlabel="spurious ratio of the unlabelled data", ylabel="accuracy, mean and 95 % interval")
        ratios.set_ylim(0.3, 1.0)
        counts.set(xlabel="K")
        counts.set_xticks(range(len(COUNTS)), COUNTS)
        learners.set_xticks(range(3), ["perceptron", "CNN", "pretrained"])
        for axes, title in (
            (ratios, "best of two"),
            (counts, "best of K on a held-out half"),
            (learners, "best of two"),
        ):
            axes.axhline(0.5, color="#999999", linewidth=1, linestyle=":")
            axes.set_title(title, fontsize="medium")
            axes.legend(fontsize="small", frameon=False, loc="lower left")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def measure(unit: str, seed: int, setup: Any) -> list[Row]:
    """The rows of one part: the sweep over ratios, over numbers of hypotheses, or over learners."""
    from unseen.training import Learner

    def learner(method: str, count: int = 2, kind: str = "") -> Learner:
        steps = setup.steps * (1 if method == "divdis" else count)
        spec = objective(method, setup.penalty, count)
        common = {"network": setup.networks[kind], "keep": "last", "evaluations": 1, **setup.settings}
        return Learner(objective=spec, steps=steps, **common)

    shift, rows = setup.shift(seed), []
    if unit == "ratios":
        for ratio in RATIOS:
            chosen = {at(m, ratio): learner(m) for m in METHODS if m != ENSEMBLE or ratio == 0.5}
            rows += _audited(shift, chosen, ratio, setup.count, seed)
        labelled = {LABELS: learner(ENSEMBLE)}
        rows += _audited(shift, labelled, 0.5, setup.count, seed, train="pool", pool="train")
    elif unit == "hypotheses":
        for method, ratio in MISMATCHED.items():
            chosen = {at(method, ratio, f"K={count}"): learner(method, count) for count in COUNTS[1:]}
            rows += _audited(shift, chosen, ratio, setup.count, seed)
    else:
        for ratio in (0.0, 0.5):
            chosen = {at(m, ratio, kind): learner(m, kind=kind) for m in MISMATCHED for kind in KINDS}
            rows += _audited(shift, chosen, ratio, setup.count, seed)
    return rows


def _audited(
    shift: Any, learners: Mapping[str, Any], ratio: float, count: int, seed: int, **roles: str
) -> list[Row]:
    from unseen.studies.diversification import diversification_audit

    roles = {"train": "train", "pool": "pool", "judge": "balanced", **roles}
    if roles["pool"] == "train":  # nothing reads them, and all of them agree
        ratio = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenWarning)  # ratio 1 is here on purpose
        table = diversification_audit(shift, learners, ratios=[ratio], count=count, seed=seed, **roles)
    return [
        Row(str(row["method"]), metric, float(row[metric]))
        for row in table.to_dict("records")
        for metric in Diversification.metrics
    ]


# Colours after Okabe & Ito (2008).
_COLOURS = {"d-bat": "#d55e00", "divdis": "#0072b2", "divdis-seq": "#56b4e9"}
_SHADES = {
    ("d-bat", 0.0): "#d55e00",
    ("d-bat", 0.5): "#e69f00",
    ("divdis", 0.0): "#0072b2",
    ("divdis", 0.5): "#009e73",
}
