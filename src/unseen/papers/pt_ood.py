"""PT-OOD: do detectors on a frozen backbone cope with inputs that its pretraining, not the task, has seen?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

SIX, FOUR, PHOTOGRAPHS = "six digits", "four digits", "photographs"
HEAD, FEATURES = ("msp", "max-logit", "energy"), ("knn", "ssd")
ALL_DIGITS = ("supervised", "contrastive", "reconstruction", "scratch", "untrained")
EXCLUDED = ("supervised, excluded", "contrastive, excluded", "reconstruction, excluded")
FULL = "full"
FULL_SETS = (f"{FULL}: PT-OOD", f"{FULL}: non-PT-OOD")


def auroc(ood: str, detector: str) -> str:
    """Name of a metric."""
    return f"{ood}: AUROC of {detector}"


def _by_head(m: Measured, condition: str, ood: str) -> float:
    """Mean AUROC of the scores that read the head."""
    return float(np.mean([m[condition, auroc(ood, detector)] for detector in HEAD]))


def _deficit(ood: str, suffix: str = "") -> Callable[[Measured], float]:
    """Head-based AUROC of the supervised backbone above the contrastive one."""
    return lambda m: _by_head(m, f"supervised{suffix}", ood) - _by_head(m, f"contrastive{suffix}", ood)


def _gain_of_features(condition: str) -> Callable[[Measured], float]:
    """Neighbours' AUROC above the best that reads the head."""
    return lambda m: m[condition, auroc(SIX, "knn")] - max(m[condition, auroc(SIX, d)] for d in HEAD)


def _separability_tells(table: pd.DataFrame) -> float:
    """Spearman's, over all seeds of the backbones that saw all digits, ID digits or nothing."""
    runs = table[table.condition.isin(ALL_DIGITS)].set_index(["seed", "condition"])
    separability, msp = (
        runs.value[runs.metric == metric] for metric in (f"{SIX}: separability", auroc(SIX, "msp"))
    )
    return float(spearmanr(separability, msp.reindex(separability.index)).statistic)


@papers.register(
    "pt-ood",
    summary="Detectors on frozen backbones meet classes that the pretraining has seen",
    paper="Miyai et al. 2023, arXiv 2310.00847",
)
class PTOOD(Reproduction):
    card = Card(
        number=45,
        title="Can Pre-trained Networks Detect Familiar Out-of-Distribution Data?",
        authors="Miyai, Yu, Irie and Aizawa",
        venue="arXiv 2023",
        arxiv="2310.00847",
        claim="With a linear probe on a frozen backbone, detectors fail on OOD classes of the pretraining where these "
        "are not linearly separable, as in self-supervised backbones; scores in feature space do not.",
        here="5,000 MNIST digits: four digits are ID, the six others were seen in pretraining alone (other images of "
        "them: the class is familiar, the image is not). Three convolutions (16, 32, 32) and 32 features, the same "
        "1,000 images of all digits, 40 epochs of Adam (1e-3) with slight affine changes: by labels, by contrast "
        "(SimCLR, temperature 0.2) and by reconstruction; on ID digits alone; untrained. Probe: logistic regression on "
        "standardised features of 100 images a class, its strength of least cross-validated loss on ID; k = 10 for "
        "all. Control for familiarity: the same three, pretrained on 1,000 images of ID and two other digits, so that "
        "four digits were never seen. 600 ID and 900 OOD images, ties count one half. Chosen by ID accuracy on a "
        "seed that is not judged: a layer of features, not a mean over positions (.98 after .83); batches of 64.",
        not_here="ImageNet backbones and their data.",
        full="Real backbones ($UNSEEN_SUPERVISED, default efficientnet-lite0; $UNSEEN_SELF_SUPERVISED, such as "
        "timm:NAME or transformers:NAME) on half of the classes of a folder domain/class/image of the pretraining's "
        "classes ($UNSEEN_FAMILIAR), the other half being PT-OOD, and a folder of classes that it never saw "
        "($UNSEEN_NOVEL). One GPU for the features.",
    )
    conditions = (
        Condition("supervised", "baseline", "pretrained with labels of all ten digits"),
        Condition("contrastive", "method", "SimCLR on the same images"),
        Condition("reconstruction", "method", "autoencoder on the same images"),
        Condition("scratch", "reference", "labels of ID digits alone: nothing unfamiliar was seen"),
        Condition("untrained", "control", "random weights"),
        Condition("supervised, excluded", "control", "as supervised, but four digits were left out"),
        Condition("contrastive, excluded", "control", "as contrastive, but four digits were left out"),
        Condition("reconstruction, excluded", "control", "as reconstruction, but four digits were left out"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "id_accuracy": "accuracy of the probe on ID digits",
        "id_loss": "cross-entropy of the probe there, nats",
        **{
            f"{ood}: {name}": text
            for ood in (SIX, FOUR, PHOTOGRAPHS, *FULL_SETS)
            for name, text in (
                *((f"AUROC of {d}", "AUROC of ID against this set") for d in (*HEAD, *FEATURES)),
                *((f"FPR95 of {d}", "share accepted where 95 % of ID are") for d in (*HEAD, *FEATURES)),
                ("separability", "cross-validated accuracy of a linear classifier of ID and these classes"),
                ("id_vs_ood", "cross-validated accuracy of a hyperplane between ID and this set"),
                ("few_shot", "accuracy of a linear classifier of all classes from five images of each"),
            )
        },
        f"{FULL}: id_accuracy": "accuracy of the probe (full scale only)",
        f"{FULL}: id_loss": "its cross-entropy (full scale only)",
    }
    claims = (
        Claim(
            "probes work",
            "The lesser ID accuracy of the supervised and the contrastive backbone.",
            value=lambda m: min(m[name, "id_accuracy"] for name in ("supervised", "contrastive")),
            at_least=0.95,
            control=True,
        ),
        Claim(
            "pretraining matters",
            "Head-based AUROC on the six digits: supervised pretraining above random weights.",
            value=lambda m: _by_head(m, "supervised", SIX) - _by_head(m, "untrained", SIX),
            at_least=0.02,
            control=True,
        ),
        Claim(
            "self-supervision is fragile",
            "Six digits that pretraining saw, mean AUROC of the head's scores: supervised above contrastive.",
            value=_deficit(SIX),
            at_least=0.02,
        ),
        Claim(
            "features: contrastive",
            "Six digits: nearest neighbours above the best score of the head, contrastive backbone.",
            value=_gain_of_features("contrastive"),
            at_least=0.02,
        ),
        Claim(
            "features: reconstruction",
            "The same, reconstruction.",
            value=_gain_of_features("reconstruction"),
            at_least=0.02,
        ),
        Claim(
            "separability tells",
            "Rank correlation of linear separability and AUROC of the largest softmax, backbones and seeds.",
            pooled=_separability_tells,
            at_least=0.6,
        ),
        Claim(
            "familiarity, not geometry",
            "Four digits: what contrastive loses to supervised where both saw them, less where neither did.",
            value=lambda m: _deficit(FOUR)(m) - _deficit(FOUR, ", excluded")(m),
            at_least=0.0,
        ),
        Claim(
            "same digits, never seen",
            "What contrastive loses to supervised on the four digits when neither saw them.",
            value=_deficit(FOUR, ", excluded"),
        ),
        Claim(
            "photographs",
            "The same on patches of photographs, which neither saw.",
            value=_deficit(PHOTOGRAPHS),
        ),
        Claim(
            "seen or not: contrastive",
            "Head-based AUROC on the four digits: contrastive pretraining that left them out, above one that saw them.",
            value=lambda m: _by_head(m, "contrastive, excluded", FOUR) - _by_head(m, "contrastive", FOUR),
        ),
        Claim(
            "seen or not: supervised",
            "The same, with labels.",
            value=lambda m: _by_head(m, "supervised, excluded", FOUR) - _by_head(m, "supervised", FOUR),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        names = [condition.name for condition in self.conditions]
        return names if scale == "laptop" else names + [f"{FULL}: {n}" for n in ("supervised", "contrastive")]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers import pt_ood_runs as runs

        condition = unit.removeprefix(f"{FULL}: ")
        found = runs.judged(unit, seed) if unit == condition else runs.folder(condition, seed)
        return [Row(condition, metric, value) for metric, value in found.items()]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.8), layout="constrained")
        seen, separable = figure.subplots(1, 2, width_ratios=(1.5, 1))
        names = [c.name for c in self.conditions]
        values = table.set_index(["condition", "metric"]).value
        bars = [
            (SIX, "msp", "#d55e00", "o"), (SIX, "knn", "#0072b2", "o"),
            (FOUR, "msp", "#d55e00", "s"), (FOUR, "knn", "#0072b2", "s"),
            (PHOTOGRAPHS, "msp", "#d55e00", "^"), (PHOTOGRAPHS, "knn", "#0072b2", "^"),
        ]  # fmt: skip
        rows = np.arange(len(names))[::-1]
        for offset, (ood, detector, colour, marker) in zip(np.linspace(0.32, -0.32, 6), bars, strict=True):
            found = [mean_interval(values[name, auroc(ood, detector)]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            seen.errorbar(
                mean, rows + offset, xerr=[mean - low, high - mean], fmt=marker, color=colour,
                label=f"{ood}, {detector}", ms=4,
            )  # fmt: skip
        seen.set(xlabel="AUROC, mean and 95 % interval over seeds")
        seen.set_yticks(rows, names)
        seen.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        for name, style in _STYLES.items():
            x, y = values[name, f"{SIX}: separability"], values[name, auroc(SIX, "msp")]
            separable.scatter(x, y, s=34, alpha=0.8, label=name, **style)
        separable.set(
            xlabel=f"linear separability of all classes, {SIX}", ylabel="AUROC of the largest softmax"
        )
        separable.legend(frameon=False, fontsize="small")
        for axes in (seen, separable):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


# Colours after Okabe & Ito (2008).
_STYLES: dict[str, dict[str, Any]] = {
    "supervised": {"color": "#0072b2", "marker": "o"},
    "contrastive": {"color": "#d55e00", "marker": "D"},
    "reconstruction": {"color": "#e69f00", "marker": "s"},
    "scratch": {"color": "#009e73", "marker": "^"},
    "untrained": {"color": "#999999", "marker": "v"},
}
