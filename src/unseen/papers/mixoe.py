"""MixOE: do mixtures of examples and outliers help against novel classes, where the outliers themselves do not?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

BEFORE, LONGER, OE, ENERGY = "before fine-tuning", "cross-entropy", "OE", "EnergyOE"
MIXUP, CUTMIX, WITHIN = "MixOE, mixup", "MixOE, cutmix", "mixup of examples"
FINE, COARSE, ACCURACY = "fine AUROC", "coarse AUROC", "accuracy"
TUNED = (LONGER, OE, ENERGY, MIXUP, CUTMIX, WITHIN)


def _gain(metric: str, of: str, over: str) -> Callable[[Measured], float]:
    return lambda m: m[of, metric] - m[over, metric]


def _share_of_seeds(table: pd.DataFrame) -> float:
    """Share of seeds in which MixOE with cutmix beats the same time of cross-entropy on fine OOD."""
    gains = [_gain(FINE, CUTMIX, LONGER)(m) for m in by_seed(table).values()]
    return sum(gain > 0 for gain in gains) / len(gains)


@papers.register(
    "mixoe",
    summary="Examples mixed with outliers teach caution towards novel classes, where outliers alone do not",
    paper="Zhang et al. 2023, WACV, pages 5531-5540",
)
class MixOEPaper(Reproduction):
    card = Card(
        number=68,
        title="Mixture Outlier Exposure: Towards Out-of-Distribution Detection in Fine-grained Environments",
        authors="Zhang, Inkawhich, Linderman, Chen and Li",
        venue="WACV 2023",
        arxiv="2106.03917",
        claim="Exposure to outliers helps against inputs as far away as they are and not against novel classes "
        "of the same kind; mixing examples with outliers, with a confidence that falls with the outlier's share, helps "
        "against both.",
        here="Six random digits of scikit-learn's 8 x 8 (240 images, 20 moved copies each) are known, the other "
        "four are fine OOD. Outliers in training: 3,000 patches of a photograph with the digits' mean and contrast; "
        "coarse OOD: 800 of another photograph. A perceptron 64-64-64 after 600 steps of Adam at 1e-3 is fine-tuned "
        "for 600 more at 5e-4 in each way, with the paper's settings (weight 5; alpha 1 for mixup and 2 for cutmix; "
        "OE 1; EnergyOE 0.1, -13, -6). Scores: the largest probability, for EnergyOE the energy. Width, copies and the "
        "patches' contrast were chosen on seeds that are not judged, for cross-entropy to have something to gain.",
        not_here="ResNet-50 on 448 pixels, the four fine-grained sets, WebVision; outliers are of one kind here.",
        full="An image folder domain/class/image of fine classes ($UNSEEN_IMAGES) of which six in ten are known, "
        "images of none of them as outliers ($UNSEEN_OUTLIERS, a folder) and as coarse OOD ($UNSEEN_COARSE), with the "
        "network of UNSEEN_NETWORK (default resnet(width=64)): 90 and 10 epochs in batches of 32, SGD. The paper: "
        "NABirds, Butterfly-200, Stanford Cars, FGVC-Aircraft; WebVision; ResNet-50; two GPUs.",
    )
    conditions = (
        Condition(BEFORE, "reference", "the classifier that all fine-tunings begin from"),
        Condition(LONGER, "control", "as many steps of fine-tuning, without outliers"),
        Condition(OE, "baseline", "uniform answers to outliers"),
        Condition(ENERGY, "baseline", "high energies of outliers, low ones of examples"),
        Condition(MIXUP, "method", "examples blended with outliers"),
        Condition(CUTMIX, "method", "rectangles of outliers pasted into examples"),
        Condition(WITHIN, "control", "examples blended with examples: mixing without outliers"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        FINE: "area under the ROC curve, known digits against other digits",
        COARSE: "the same against patches of a photograph",
        "fine TNR95": "share of other digits rejected where 95 % of the known are accepted",
        "coarse TNR95": "the same of patches",
        ACCURACY: "of the known digits",
    }
    claims = (
        Claim(
            "no collapse",
            "Lowest ID accuracy of any fine-tuning.",
            value=lambda m: min(m[name, ACCURACY] for name in TUNED),
            at_least=0.85,
            control=True,
        ),
        Claim(
            "exposure helps against its like",
            "OE against cross-entropy, coarse AUROC.",
            value=_gain(COARSE, OE, LONGER),
            at_least=0.10,
        ),
        Claim(
            "mixtures help against novel classes",
            "MixOE with cutmix against cross-entropy, fine AUROC.",
            value=_gain(FINE, CUTMIX, LONGER),
            at_least=0.01,
        ),
        Claim(
            "in nearly every draw",
            "Share of seeds in which it does.",
            pooled=_share_of_seeds,
            at_least=0.8,
        ),
        Claim(
            "more than outliers do",
            "MixOE with cutmix against OE, fine AUROC.",
            value=_gain(FINE, CUTMIX, OE),
            at_least=0.005,
        ),
        Claim(
            "at no cost in accuracy",
            "MixOE with cutmix against cross-entropy, accuracy.",
            value=_gain(ACCURACY, CUTMIX, LONGER),
            at_least=-0.015,
        ),
        Claim(
            "not behind mixing alone",
            "MixOE with cutmix against mixup of examples, fine AUROC.",
            value=_gain(FINE, CUTMIX, WITHIN),
            at_least=-0.005,
        ),
        Claim(
            "outliers make the difference far away",
            "MixOE with cutmix against mixup of examples, coarse AUROC.",
            value=_gain(COARSE, CUTMIX, WITHIN),
            at_least=0.08,
        ),
        Claim(
            "outliers alone against novel classes",
            "OE against cross-entropy, fine AUROC: nothing, by the paper.",
            value=_gain(FINE, OE, LONGER),
        ),
        Claim(
            "blending instead of pasting",
            "MixOE with mixup against cross-entropy, fine AUROC.",
            value=_gain(FINE, MIXUP, LONGER),
        ),
    )
    seeds = tuple(range(10))

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers.mixoe_runs import DIGITS, digit_world, folder_recipe, folder_world, measured

        if scale == "full":
            world = folder_world(seed)
            found = measured(world, folder_recipe(len(world.shift)), seed)
        else:
            found = measured(digit_world(seed), DIGITS, seed)
        return [
            Row(name, metric, value) for name, values in found.items() for metric, value in values.items()
        ]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.subplots()
        values = table.set_index(["condition", "metric"]).value
        colours = {"method": "#d55e00", "baseline": "#0072b2", "control": "#777777", "reference": "black"}
        for condition in self.conditions:
            x, y = (mean_interval(values[condition.name, metric]) for metric in (COARSE, FINE))
            axes.errorbar(
                x.estimate,
                y.estimate,
                xerr=[[x.estimate - x.low], [x.high - x.estimate]],
                yerr=[[y.estimate - y.low], [y.high - y.estimate]],
                fmt="o",
                color=colours[condition.role],
                elinewidth=0.7,
                alpha=0.9,
            )
            left = x.estimate > 0.9
            axes.annotate(
                condition.name,
                (x.estimate, y.estimate),
                xytext=(-5 if left else 5, 5),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
            )
        axes.set(xlabel="coarse AUROC (patches of a photograph)", ylabel="fine AUROC (other digits)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        return figure
