"""BANG: do averages help because members use different cues, and does modest fine-tuning help the average?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

COUNTS, BROKEN = (2, 4, 8, 16, 32), (0.7, 0.8, 0.9)
JUDGED = tuple(f"k={k}, p={p:g}" for k in (4, 8, 16) for p in (0.7, 0.8))
SOFTENED = ("label-smoothing", "mixup", "bang")
OBJECTIVES = {"ce": "erm", **{name: name for name in SOFTENED}}
"""Conditions of fine-tuning and their objectives, with the registered settings: smoothing 0.1, Beta(0.2, 0.2)."""
TEMPERATURE, ACCURACY = "ce, temperature matched", "bang, accuracy matched"
ALONE, WEIGHTS, OUTPUTS = "unseen, alone", "unseen, weights at 0.5", "unseen, outputs"
CONFIDENCE, TRAIN = "unseen, confidence", "train accuracy"
LEFT_OUT = "left out"


def _mean(condition: str, prefix: str = "") -> Callable[[Measured], float]:
    """Mean over the judged numbers of patches and probabilities."""
    return lambda m: float(np.mean([m[condition, prefix + at] for at in JUDGED]))


def _difference(one: str, other: str, metric: str) -> Callable[[Measured], float]:
    return lambda m: m[one, metric] - m[other, metric]


def _least_gain(table: pd.DataFrame) -> float:
    """The least, over the judged cells, of the ensemble's mean gain."""
    gains = table[(table.condition == "ensemble") & table.metric.isin([f"gain, {at}" for at in JUDGED])]
    return float(gains.groupby("metric").value.mean().min())


def _grows_with_patches(table: pd.DataFrame) -> float:
    means = _over_counts(table, "member", "k={}, p=0.7")
    return float(spearmanr(list(means), [np.mean(values) for values in means.values()]).statistic)


def _over_counts(table: pd.DataFrame, condition: str, metric: str) -> dict[int, Any]:
    """k -> the values of all seeds, where there are any."""
    rows = table[table.condition == condition]
    found = {k: rows.value[rows.metric == metric.format(k)].to_numpy() for k in COUNTS}
    return {k: values for k, values in found.items() if len(values)}


def _between_the_ends(m: Measured) -> float:
    middle = (m["ce", WEIGHTS] + m["ce", "unseen, weights at 0.3"]) / 2
    return middle - max(m["pretrained", ALONE], m["ce", ALONE])


def _share_of_gain(table: pd.DataFrame) -> float:
    rows = table[table.condition == "ce"]
    both_wrong, gain = (
        rows.value[rows.metric == m].mean() for m in ("unseen, FFT", "unseen, gain in weights")
    )
    return float(both_wrong / gain)


_ACCURACIES = {
    f"{prefix}k={k}, p={p:g}": f"accuracy where each member sees {k} of 32 patches, broken with probability {p:g}{note}"
    for prefix, note in (("", ""), ("clean, ", ", digits without noise"))
    for k in COUNTS
    for p in BROKEN
}
_OUTCOMES = {
    f"{what}, k={k}, p={p:g}": f"{meaning}, {k} patches a member, broken with probability {p:g}"
    for what, meaning in (
        ("gain", "accuracy of two members together above their mean"),
        ("FFT", "share of digits that both members get wrong and their ensemble right"),
    )
    for k in COUNTS
    for p in BROKEN
    if what == "gain" or k < 32
}


@papers.register(
    "bang",
    summary="Averages help because members use different cues; over-confident members spoil them",
    paper="Lin et al. 2024, arXiv 2309.17230",
)
class BANG(Reproduction):
    card = Card(
        number=6,
        title="Spurious Feature Diversification Improves Out-of-distribution Generalization",
        authors="Lin, Tan, Hao, Wong, Dong, Zhang, Yang and Zhang",
        venue="ICLR 2024",
        arxiv="2309.17230",
        claim="Averaging helps out of distribution because members rely on different spurious features, each of which "
        "then counts less; fine-tuned models are over-confident and dominate the average, so fine-tuning with label "
        "smoothing and Mixup before averaging (BANG) helps further.",
        here="Patches: scikit-learn's 1,797 digits (1,200 to train on, noise 0.6) beside 32 patches whose colours all "
        "tell the digit in training; judged where each patch is broken with probability 0.7, 0.8 or 0.9. Perceptrons "
        "160-32-10 see the digit and k patches each; pairs see different patches; ensembles average logits. "
        "Fine-tuning: a small CLIP (half width, 2,500 pairs, 10 epochs, eight looks) of images by rule and captions "
        "is fine-tuned from its zero-shot head on 500 images of eight shapes in three looks (1,000 steps of AdamW, "
        "1e-3) and judged in five others; smoothing 0.1, Beta(0.2, 0.2), no setting chosen. alpha is 0.5 or 0.3, or "
        "chosen on held-out images of the source. Both parts were looked at once on seeds that are not judged: "
        "smoothing and Mixup gained nothing in weights there.",
        not_here="CLIP on ImageNet and its variants, and which of weights and outputs is better to average at scale. "
        "The paper's smoothing and Mixup settings are not known to us.",
        full="An image folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain left out in "
        "turn, a fine-tuned backbone ($UNSEEN_BACKBONE, default efficientnet-lite0; the paper: CLIP ViT-B/16): a "
        "linear probe for 500 steps, which stands in for the zero-shot head, then 4,500 steps of everything, "
        "averaged with the probe at alpha 0.5. One GPU a run.",
    )
    conditions = (
        Condition("member", "baseline", "patches: one perceptron, mean of two"),
        Condition("ensemble", "method", "patches: two members that see different patches"),
        Condition("four members", "method", "patches: four members that see different patches"),
        Condition("union", "reference", "patches: one perceptron that sees the patches of both members"),
        Condition("same patches", "control", "patches: two members that differ in initial weights and order"),
        Condition("one cue", "control", "patches: two members where there is a single patch"),
        Condition("pretrained", "reference", "fine-tuning: the zero-shot network"),
        Condition("ce", "baseline", "fine-tuning with cross-entropy; its averages are WiSE-FT"),
        Condition("label-smoothing", "method", "BANG with smoothing alone"),
        Condition("mixup", "method", "BANG with Mixup alone"),
        Condition("bang", "method", "BANG with both"),
        Condition(TEMPERATURE, "baseline", "head divided by what gives the pretrained network's confidence"),
        Condition(ACCURACY, "control", "BANG's step whose accuracy on unseen looks is nearest to ce's"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        **_ACCURACIES,
        **_OUTCOMES,
        "gain": "accuracy of two members above their mean where there is one patch, mean over probabilities",
        ALONE: "accuracy on five unseen looks, the network by itself",
        "source, alone": "accuracy on new images of the three looks of fine-tuning",
        WEIGHTS: "accuracy on unseen looks of the half-way weights between pretrained and fine-tuned",
        "unseen, weights at 0.3": "the same at 0.3 of the way",
        "unseen, weights, alpha by validation": "the same at the share of the way that is best on the source",
        "alpha by validation": "that share, of 0, 0.1, ..., 1",
        OUTPUTS: "accuracy on unseen looks of the mean of both networks' logits",
        "source, weights at 0.5": "accuracy on the source of the half-way weights",
        CONFIDENCE: "mean probability of the predicted class on unseen looks",
        "source, confidence": "the same on the source",
        "unseen, calibration error": "expected calibration error on unseen looks",
        TRAIN: "accuracy on the images that were fine-tuned on, unmixed",
        "unseen, FFT": "share that pretrained and fine-tuned get wrong and the half-way weights right",
        "unseen, TTF": "share that both get right and the half-way weights wrong",
        "unseen, gain in weights": "accuracy of the half-way weights above the mean of both",
        f"{LEFT_OUT}, alone": "accuracy on a domain that was left out, mean over domains (full scale only)",
        f"{LEFT_OUT}, weights at 0.5": "the same of the average with the linear probe (full scale only)",
    }
    claims = (
        Claim(
            "one cue, no diversity",
            "Where there is a single patch, two members gain nothing.",
            value=lambda m: m["one cue", "gain"],
            at_most=0.02,
            control=True,
        ),
        Claim(
            "more cues",
            "Rank correlation of the number of patches that a perceptron sees and its mean accuracy at p = 0.7.",
            pooled=_grows_with_patches,
            at_least=0.9,
        ),
        Claim(
            "ensembles gain",
            "Two members with different patches above their mean: the least over k = 4, 8, 16 and p = 0.7, 0.8.",
            pooled=_least_gain,
            at_least=0.03,
        ),
        Claim(
            "both wrong, together right",
            "Share of digits that both members get wrong and their ensemble right, same k and p.",
            value=_mean("ensemble", "FFT, "),
            at_least=0.002,
        ),
        Claim(
            "it is the patches",
            "The gain of members with different patches above that of members with the same ones.",
            value=lambda m: _mean("ensemble", "gain, ")(m) - _mean("same patches", "gain, ")(m),
            at_least=0.02,
        ),
        Claim(
            "against all patches at once",
            "The ensemble against one perceptron that sees the patches of both.",
            value=lambda m: _mean("ensemble")(m) - _mean("union")(m),
        ),
        Claim(
            "four members",
            "Four members against two, k = 4 and 8, p = 0.7.",
            value=lambda m: float(
                np.mean([m["four members", at] - m["ensemble", at] for at in ("k=4, p=0.7", "k=8, p=0.7")])
            ),
        ),
        Claim(
            "boundary: a strong digit",
            "Without noise on the digit, at p = 0.9: a perceptron with 32 patches against one with 8.",
            value=lambda m: m["member", "clean, k=32, p=0.9"] - m["member", "clean, k=8, p=0.9"],
        ),
        Claim(
            "fitted",
            "The least training accuracy of the three softened ways to fine-tune: none is merely under-trained.",
            value=lambda m: min(m[name, TRAIN] for name in SOFTENED),
            at_least=0.95,
            control=True,
        ),
        Claim(
            "WiSE-FT beats both ends",
            "Weights at 0.3 and 0.5 of the way, on average, against the better of pretrained and fine-tuned.",
            value=_between_the_ends,
            at_least=0.01,
        ),
        Claim(
            "fine-tuning is over-confident",
            "Confidence on unseen looks: fine-tuned against pretrained.",
            value=_difference("ce", "pretrained", CONFIDENCE),
            at_least=0.05,
        ),
        Claim(
            "softened targets are not",
            "Confidence on unseen looks: cross-entropy against the surer of smoothing and BANG.",
            value=lambda m: (
                m["ce", CONFIDENCE] - max(m["label-smoothing", CONFIDENCE], m["bang", CONFIDENCE])
            ),
            at_least=0.05,
        ),
        Claim(
            "smoothing, in weights",
            "Label smoothing against cross-entropy, half-way weights.",
            value=_difference("label-smoothing", "ce", WEIGHTS),
            at_least=0.01,
        ),
        Claim(
            "BANG, in weights",
            "Smoothing and Mixup against cross-entropy, half-way weights.",
            value=_difference("bang", "ce", WEIGHTS),
            at_least=0.01,
        ),
        Claim(
            "smoothing, in outputs",
            "Label smoothing against cross-entropy, mean of logits.",
            value=_difference("label-smoothing", "ce", OUTPUTS),
            at_least=0.01,
        ),
        Claim(
            "BANG, in outputs",
            "Smoothing and Mixup against cross-entropy, mean of logits.",
            value=_difference("bang", "ce", OUTPUTS),
            at_least=0.01,
        ),
        Claim(
            "temperature, in weights",
            "Cross-entropy with matched temperature against without, half-way weights.",
            value=_difference(TEMPERATURE, "ce", WEIGHTS),
        ),
        Claim(
            "temperature, in outputs",
            "The same, mean of logits.",
            value=_difference(TEMPERATURE, "ce", OUTPUTS),
        ),
        Claim(
            "equal accuracy, in weights",
            "BANG at the step with ce's own accuracy on unseen looks against ce, half-way weights.",
            value=_difference(ACCURACY, "ce", WEIGHTS),
        ),
        Claim(
            "equal accuracy, in outputs",
            "The same, mean of logits.",
            value=_difference(ACCURACY, "ce", OUTPUTS),
        ),
        Claim(
            "share of both wrong",
            "Of WiSE-FT's gain above the mean of both ends: the share that both ends get wrong.",
            pooled=_share_of_gain,
        ),
    )
    seeds = tuple(range(10))

    def units(self, scale: Scale) -> list[str]:
        units = ["patches", "fine-tuning"]
        return units if scale == "laptop" else units + [f"{LEFT_OUT}: {name}" for name in OBJECTIVES]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit == "patches":
            return patches(seed)
        if unit == "fine-tuning":
            from unseen.papers.balanced_tuning import tuning_metrics

            return [Row(*key, value) for key, value in tuning_metrics(seed).items()]
        return left_out(unit.removeprefix(f"{LEFT_OUT}: "), seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6), layout="constrained")
        cues, tuned = figure.subplots(1, 2, width_ratios=(1, 1.2))
        for condition, style in _LINES.items():
            found = _over_counts(table, condition, "k={}, p=0.7")
            intervals = [mean_interval(values) for values in found.values()]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in intervals]).T
            cues.plot(list(found), mean, label=condition, **style)
            cues.fill_between(list(found), low, high, color=style["color"], alpha=0.15, linewidth=0)
        cues.set_xscale("log", base=2)
        cues.set_xticks(COUNTS, [str(k) for k in COUNTS])
        cues.set(xlabel="patches that a member sees", ylabel="accuracy, patches broken with probability 0.7")
        cues.legend(frameon=False)
        names = ["pretrained", *OBJECTIVES, TEMPERATURE, ACCURACY]
        rows = np.arange(len(names))[::-1]
        for offset, (metric, colour) in zip((0.22, 0, -0.22), _BARS.items(), strict=True):
            chosen = table[table.metric == metric]
            for row, name in zip(rows, names, strict=True):
                values = chosen.value[chosen.condition == name]
                if len(values):
                    i = mean_interval(values)
                    label = metric.removeprefix("unseen, ") if name == "ce" else None
                    error = [[i.estimate - i.low], [i.high - i.estimate]]
                    tuned.errorbar(
                        i.estimate, row + offset, xerr=error, fmt="o", ms=5, color=colour, label=label
                    )
        tuned.set_yticks(rows, names)
        tuned.set_xlabel("accuracy on five unseen looks, mean and 95 % interval")
        tuned.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        for axes in (cues, tuned):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def patches(seed: int, **sizes: int) -> list[Row]:
    """Members of all sizes on noisy digits, their accuracies on clean ones, and the single cue."""
    from unseen.papers.patch_members import one_cue_gain, patch_metrics

    noisy, clean = patch_metrics(seed, noise=0.6, **sizes), patch_metrics(seed, noise=0.0, **sizes)
    rows = [Row(*key, value) for key, value in noisy.items()]
    rows += [Row(c, f"clean, {metric}", v) for (c, metric), v in clean.items() if metric in _ACCURACIES]
    gains = one_cue_gain(seed, noise=0.6, **sizes)
    return [*rows, Row("one cue", "gain", float(np.mean(list(gains.values()))))]


def left_out(name: str, seed: int) -> list[Row]:
    """Mean accuracy on a domain of an image folder that was left out, alone and averaged with a linear probe."""
    from unseen.papers.left_out_domains import left_out_accuracy

    rows = []
    for metric, averaging in (("alone", None), ("weights at 0.5", Spec.make("wise-ft", after=0.1))):
        accuracy = left_out_accuracy(
            Spec(OBJECTIVES[name]), seed, update=Spec.make("warm-start", head_steps=500),
            averaging=averaging, steps=5000, keep="last",
        )  # fmt: skip
        rows.append(Row(name, f"{LEFT_OUT}, {metric}", float(np.mean(list(accuracy.values())))))
    return rows


# Colours after Okabe & Ito (2008).
_LINES: dict[str, dict[str, Any]] = {
    "four members": {"color": "#d55e00", "marker": "s"},
    "ensemble": {"color": "#e69f00", "marker": "o"},
    "union": {"color": "#0072b2", "marker": "^", "linestyle": "--"},
    "member": {"color": "#000000", "marker": "o"},
}
_BARS = {ALONE: "#000000", WEIGHTS: "#d55e00", OUTPUTS: "#0072b2"}
