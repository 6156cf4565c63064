"""Coherent gradients: does agreement of per-example gradients tell real labels from random ones, and why?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

NOISES = {"real labels": 0.0, "noise 25 %": 0.25, "noise 50 %": 0.5, "random labels": 1.0}
AGGREGATORS = ("m3", "winsorized-1", "winsorized-3", "winsorized-6")
BASELINES = ("sgd", "early stopping", "weight decay", "label smoothing")
CHOSEN, SHORT = "robust, chosen", "sgd, steps as short"
EARLY, LATER, MATCHED, TEST = "m-coherence, early", "m-coherence, peak later", "m-coherence, matched", "test"
RATES = (0.025, 0.05, 0.1)
MNIST_EARLY, MNIST_TEST = "m-coherence on MNIST, early", "test on MNIST"
EPOCHS = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80)


def at_epoch(epoch: int) -> str:
    return f"m-coherence, epoch {epoch}"


def _rising(m: Measured) -> float:
    """Least step of early m-coherence from more noise to less."""
    values = [m[name, EARLY] for name in NOISES]
    return min(less_noise - more_noise for less_noise, more_noise in pairwise(values))


def _least_rise(table: pd.DataFrame) -> float:
    return min(_rising(measured) for measured in by_seed(table).values())


def _tells_accuracy(table: pd.DataFrame) -> float:
    """Spearman's, over all runs of plain SGD, of early m-coherence and final test accuracy."""
    seeds = by_seed(table).values()
    pairs = [(measured[name, EARLY], measured[name, TEST]) for measured in seeds for name in NOISES]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _gap(metric: str, condition: str = CHOSEN, other: str = "sgd") -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] - m[other, metric]


@papers.register(
    "coherent-gradients",
    summary="Per-example gradients agree on real labels and not on random ones; robust means memorize less",
    paper="Chatterjee & Zielinski 2022, arXiv 2203.10036",
)
class CoherentGradients(Reproduction):
    card = Card(
        number=42,
        title="On the generalization mystery in deep learning",
        authors="Chatterjee and Zielinski",
        venue="2022",
        arxiv="2203.10036",
        claim="Early in training per-example gradients are far more coherent on real than on random labels, and "
        "aggregators that drop what few examples ask for memorize less.",
        here="600 of scikit-learn's 8 x 8 digits with 0, 25, 50 and 100 % of the labels replaced by uniform ones; "
        "perceptron 64-128-10, SGD with momentum 0.9, batches of 30, 80 epochs; exact m-coherence of the 600 "
        "examples; 1,000 clean test digits. Aggregators and SGD have three learning rates each, "
        "regularised baselines three strengths, chosen by accuracy in the last three epochs on 197 validation digits "
        "whose labels are as noisy as those of training.",
        not_here="ImageNet networks and their curves, Adam, the paper's bound on the generalization gap, which is far "
        "from tight, and whether coherence between domains tells accuracy on a domain that was left out.",
        full="MNIST with all 60,000 digits ($UNSEEN_DATA/mnist.npz in Keras' layout) and the ResNet-20 of this "
        "library, 10 epochs; m-coherence of 10,000 examples by vmap, each epoch. One GPU, hours.",
    )
    conditions = (
        Condition("real labels", "method", "plain SGD"),
        Condition("noise 25 %", "method", "plain SGD"),
        Condition("noise 50 %", "method", "plain SGD"),
        Condition("random labels", "control", "plain SGD: there is nothing to generalize"),
        Condition("sgd", "baseline", "mean of gradients, last epoch"),
        Condition("early stopping", "baseline", "plain SGD, the epoch best on noisy validation"),
        Condition("weight decay", "baseline", "0.001, 0.003 or 0.01"),
        Condition("label smoothing", "baseline", "0.1, 0.2 or 0.5"),
        Condition("m3", "method", "coordinate-wise median of the means of three thirds of a batch"),
        Condition("winsorized-1", "method", "the largest and the smallest of 30 gradients drawn in"),
        Condition("winsorized-3", "method", "three at each end drawn in"),
        Condition("winsorized-6", "method", "six at each end drawn in"),
        Condition(CHOSEN, "method", "the aggregator that is best on noisy validation"),
        Condition(
            SHORT, "control", "plain SGD, no step longer than the chosen aggregator's at the same time"
        ),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        EARLY: "m-coherence of the training examples, mean of epochs 0 to 8 (1: orthogonal gradients)",
        LATER: "its largest value after epoch 8",
        MATCHED: "its value when accuracy on the training labels is nearest to one half",
        TEST: "accuracy on clean test digits, last epoch (of baselines and aggregators at 50 % noise)",
        "training": "accuracy on the training labels, last epoch",
        "wrong labels": "share of the wrong training labels (noise 50 %) that the last network gives",
        "clean": "test accuracy of the same method, tuned anew, on labels without noise",
        "validation": "accuracy on noisy validation labels, which chose the setting",
        "best epoch": "largest test accuracy of any epoch: an oracle",
        "pristine : corrupted": "early m-coherence of examples with true labels over that of wrong ones",
        "order": "AUC of the first epoch at which an example is learned, true before wrong labels",
        **{at_epoch(epoch): f"m-coherence after {epoch} epochs" for epoch in EPOCHS},
        MNIST_EARLY: "m-coherence of 10,000 examples, mean of epochs 0 to 2 (full scale only)",
        MNIST_TEST: "accuracy on the test digits, last epoch (full scale only)",
    }
    claims = (
        Claim(
            "nothing in random labels",
            "Test accuracy after training on random labels.",
            value=lambda m: m["random labels", TEST],
            at_most=0.2,
            control=True,
        ),
        Claim(
            "ordered by noise",
            "Least difference of early m-coherence between neighbouring noises, less minus more, of any seed.",
            pooled=_least_rise,
            at_least=1e-6,
        ),
        Claim(
            "real against random",
            "Early m-coherence with real labels over that with random ones.",
            value=lambda m: m["real labels", EARLY] / m["random labels", EARLY],
            at_least=4.0,
        ),
        Claim(
            "each for itself",
            "Early m-coherence with random labels is near the orthogonal limit of 1.",
            value=lambda m: m["random labels", EARLY],
            at_least=0.5,
            at_most=2.0,
        ),
        Claim(
            "tells test accuracy",
            "Rank correlation of early m-coherence and final test accuracy over seeds and noises.",
            pooled=_tells_accuracy,
            at_least=0.9,
        ),
        Claim(
            "late rise",
            "Peak of m-coherence after epoch 8 with random labels, over its early value.",
            value=lambda m: m["random labels", LATER] / m["random labels", EARLY],
            at_least=3.0,
        ),
        Claim(
            "at matched accuracy",
            "m-coherence with real labels over that with random ones where half of the labels are fitted.",
            value=lambda m: m["real labels", MATCHED] / m["random labels", MATCHED],
            at_least=1.0,
        ),
        Claim(
            "pristine more coherent",
            "Early m-coherence of examples with true labels over that of wrong ones, at 50 % noise.",
            value=lambda m: m["noise 50 %", "pristine : corrupted"],
            at_least=1.0,
        ),
        Claim(
            "pristine learned first",
            "AUC of the first epoch at which an example is learned.",
            value=lambda m: m["noise 50 %", "order"],
            at_least=0.75,
        ),
        Claim(
            "memorizes less",
            "Wrong labels given by SGD's last network, less those of the chosen aggregator's.",
            value=_gap("wrong labels", "sgd", CHOSEN),
            at_least=0.15,
        ),
        Claim(
            "tests better",
            "Test accuracy of the chosen aggregator above SGD's, last epochs, at 50 % noise.",
            value=_gap(TEST),
            at_least=0.04,
        ),
        Claim(
            "costs little without noise",
            "The same difference on labels without noise.",
            value=_gap("clean"),
            at_least=-0.015,
        ),
        Claim(
            "not by short steps",
            "Test accuracy of the chosen aggregator above SGD with steps as short.",
            value=_gap(TEST, CHOSEN, SHORT),
            at_least=0.02,
        ),
        Claim(
            "against early stopping",
            "Test accuracy of the chosen aggregator above early stopping on noisy validation.",
            value=_gap(TEST, CHOSEN, "early stopping"),
        ),
        Claim(
            "against weight decay",
            "Test accuracy of the chosen aggregator above weight decay, the strongest baseline seen here.",
            value=_gap(TEST, CHOSEN, "weight decay"),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        units = ["coherence", "aggregation"]
        return units if scale == "laptop" else units + [f"MNIST, {name}" for name in NOISES]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit.startswith("MNIST, "):
            from unseen.papers.coherent_mnist import all_digits, coherence_in_training

            name = unit.removeprefix("MNIST, ")
            epochs, test = coherence_in_training(*all_digits(), NOISES[name], seed)
            return [Row(name, MNIST_EARLY, float(np.mean(epochs[:3]))), Row(name, MNIST_TEST, test)]
        from unseen.papers.coherence_runs import aggregation_rows, coherence_rows
        from unseen.papers.noisy_digits import NoisyDigits

        data = NoisyDigits.draw(seed)
        return coherence_rows(data, seed) if unit == "coherence" else aggregation_rows(data, seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.2), layout="constrained")
        curves, bars = figure.subplots(1, 2, width_ratios=(1, 1.15))
        for name, colour in zip(NOISES, ("#0072b2", "#009e73", "#e69f00", "#d55e00"), strict=True):
            rows = table[table.condition == name]
            epochs = [epoch for epoch in EPOCHS if at_epoch(epoch) in set(rows.metric)]
            found = [mean_interval(rows.value[rows.metric == at_epoch(epoch)]) for epoch in epochs]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            curves.plot(epochs, mean, "o-", color=colour, label=name, ms=3)
            curves.fill_between(epochs, np.maximum(low, 0.1), high, color=colour, alpha=0.15, linewidth=0)
        curves.axhline(1, color="#999999", linewidth=1, linestyle=":")
        curves.set(xlabel="epoch", ylabel="m-coherence of 600 examples", yscale="log", ylim=(0.1, 60))
        curves.legend(frameon=False, fontsize="small")
        names = (*BASELINES, *AGGREGATORS, CHOSEN, SHORT)
        places = np.arange(len(names))[::-1]
        for metric, colour, offset in ((TEST, "#0072b2", 0.15), ("wrong labels", "#d55e00", -0.15)):
            rows = table[(table.metric == metric) & table.condition.isin(names)]
            found = [mean_interval(rows.value[rows.condition == name]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            bars.errorbar(
                mean, places + offset, xerr=[mean - low, high - mean], fmt="o", color=colour, label=metric
            )
        bars.set(xlabel="share at 50 % noise, mean and 95 % interval over seeds", xlim=(0, 1))
        bars.set_yticks(places, names)
        bars.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        for axes in (curves, bars):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure
