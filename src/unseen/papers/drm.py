"""DRM: do heads of single domains, chosen by the entropy of their answers, fit unseen domains better than one head?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

ANGLES: dict[tuple[int, ...], tuple[int, ...]] = {
    (0, 90, 180): (30, 60, 135, 150),
    (0, 60, 120, 180): (30, 90, 150),
    (0, 180): (20, 160),
}
"""Source angles, and the unseen ones between them."""
UNSEEN, SOURCES, LEFT_OUT = "unseen", "sources", "left out"


def at(sources: tuple[int, ...], angle: int) -> str:
    """Name of the accuracy at an angle when trained on others."""
    return f"{'+'.join(map(str, sources))}: {angle}"


TARGETS = tuple(at(sources, angle) for sources, targets in ANGLES.items() for angle in targets)
SEEN = tuple(at(sources, angle) for sources in ANGLES for angle in sources)


def _gain(condition: str, over: str, metric: str = UNSEEN) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] - m[over, metric]


def _recovered(m: Measured) -> float:
    """Share of what the best head gains over ERM."""
    return _gain("batch", "erm")(m) / _gain("oracle", "erm")(m)


def _least_on_sources(table: pd.DataFrame) -> float:
    """Steered DRM against ERM on the source angle where it is worst, in the mean over seeds."""
    means = table.groupby(["condition", "metric"]).value.mean()
    return float(min(means["batch", metric] - means["erm", metric] for metric in SEEN))


@papers.register(
    "drm",
    summary="Heads of single domains, chosen by unlabelled test batches, fit unseen domains better than one head",
    paper="Zhang et al. 2023, arXiv 2208.08661",
)
class DRMReproduction(Reproduction):
    card = Card(
        number=52,
        title="Domain-Specific Risk Minimization for Out-of-Distribution Generalization",
        authors="Zhang, Wang, Liang, Zhang, Yu, Wang, Tao and Xie",
        venue="KDD 2023",
        arxiv="2208.08661",
        claim="One classifier for all source domains may be far from the best for the target. A head for each source "
        "domain, chosen at test time by an estimate of its fit that needs no labels, narrows this adaptivity gap, "
        "without loss on the sources.",
        here="MNIST-5k at 14 x 14, 500 other images for each source angle: 0+90+180, 0+60+120+180 and 0+180 degrees; "
        "500 held-out images, the same at every angle, tested at nine angles in between and at the sources. "
        "Perceptron 196-128-64, Adam (1e-3), 500 steps of 64 images an angle, for ERM and DRM alike. Nothing was "
        "tuned. A batch that steers holds the 500 test images of an angle, unless the condition says otherwise. "
        "Entropy chooses among the heads of the domains and the shared one. The record: entropy mostly finds "
        "the best head, but on one seed of five it took a wrong head for two angles (accuracy .2, not .6), which costs "
        "the claims on unseen angles; the discriminator, a score that the paper treats as an alternative, did not. "
        "DRM's shared head alone is a point below ERM.",
        not_here="DomainBed's images with a pretrained ResNet-50, and the curve of adaptation on them.",
        full="PACS or any folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain left out "
        "in turn, with a fine-tuned backbone ($UNSEEN_BACKBONE, default efficientnet-lite0; the paper: ResNet-50) and "
        "DomainBed's defaults; an unseen domain steers in batches of 32 and as a whole. One GPU a run.",
    )
    conditions = (
        Condition("erm", "baseline", "one head, the same encoder, updates and examples"),
        Condition("erm ensemble", "baseline", "mean of as many ERM networks as DRM has heads"),
        Condition("shared", "baseline", "DRM's head of all domains: what a saved model answers with"),
        Condition("uniform", "baseline", "mean of DRM's heads"),
        Condition("example", "baseline", "each example steers by entropy for itself"),
        Condition("batch", "method", "the batch steers by mean entropy"),
        Condition("batch of 32", "method", "the same, 32 images at a time"),
        Condition("batch of 8", "method", "the same, 8 images at a time"),
        Condition("soft", "method", "the batch mixes heads by entropy^-1"),
        Condition("prototype", "method", "the batch steers by distance from the domains' mean features"),
        Condition("cosine", "method", "the same by cosine similarity, the largest wins"),
        Condition("discriminator", "method", "the batch steers by a network that guesses the domain"),
        Condition("mixed, batch", "baseline", "all angles arrive mixed, 32 at a time; a batch steers"),
        Condition("mixed, group", "method", "the same; every angle steers by what was seen of it"),
        Condition(
            "adapted, rising", "method", "heads learn from steered pseudo-labels; angles in rising order"
        ),
        Condition("adapted, falling", "method", "the same; angles in falling order"),
        Condition("shuffled", "control", "heads of random parts of the sources; the batch steers"),
        Condition("oracle", "reference", "the head that is best for the labels of the angle"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        UNSEEN: "accuracy, mean of nine (source angles, unseen angle)",
        SOURCES: "accuracy at the source angles, mean of nine",
        **{
            name: "accuracy at this angle when trained on those before the colon"
            for name in (*TARGETS, *SEEN)
        },
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "angles are a shift",
            "ERM loses accuracy at unseen angles.",
            value=lambda m: m["erm", SOURCES] - m["erm", UNSEEN],
            at_least=0.15,
            control=True,
        ),
        Claim(
            "domains needed",
            "Steering among heads of random parts of the sources, against ERM at unseen angles.",
            value=_gain("shuffled", "erm"),
            at_most=0.02,
            control=True,
        ),
        Claim(
            "better than ERM",
            "Steering by batch against ERM at unseen angles.",
            value=_gain("batch", "erm"),
            at_least=0.04,
        ),
        Claim(
            "better than the mean of heads",
            "Steering by batch against the uniform mixture at unseen angles.",
            value=_gain("batch", "uniform"),
            at_least=0.04,
        ),
        Claim(
            "better than an ensemble",
            "Steering by batch against as many ERM networks at unseen angles.",
            value=_gain("batch", "erm ensemble"),
            at_least=0.0,
        ),
        Claim(
            "near the best head",
            "Share of the best head's gain over ERM that steering by batch has.",
            value=_recovered,
            at_least=0.7,
        ),
        Claim(
            "keeps the sources",
            "Steering by batch against ERM at the source angle where it is worst.",
            pooled=_least_on_sources,
            at_least=-0.01,
        ),
        Claim(
            "an example is too little",
            "Steering by example against ERM at unseen angles: the paper's score with the wrong unit.",
            value=_gain("example", "erm"),
            at_most=0.0,
        ),
        Claim(
            "groups repair mixed batches",
            "When all angles arrive mixed: steering by group against steering by batch, at unseen angles.",
            value=_gain("mixed, group", "mixed, batch"),
            at_least=0.02,
        ),
        Claim("batches of 8", "Batches of 8 against the 500.", value=_gain("batch of 8", "batch")),
        Claim("prototypes", "Steering by prototypes against ERM.", value=_gain("prototype", "erm")),
        Claim("discriminator", "Steering by discriminator against ERM.", value=_gain("discriminator", "erm")),
        Claim(
            "adaptation",
            "Learning from pseudo-labels against steering alone, the worse of two orders of the angles.",
            value=lambda m: (
                min(m[f"adapted, {o}", UNSEEN] for o in ("rising", "falling")) - m["batch of 32", UNSEEN]
            ),
        ),
        Claim(
            "the exception",
            "Steering by batch against ERM at 90 degrees, from 0, 60, 120 and 180.",
            value=_gain("batch", "erm", at((0, 60, 120, 180), 90)),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return ["all"] if scale == "laptop" else ["erm", "drm"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if scale == "full":
            return [Row(name, LEFT_OUT, value) for name, value in left_out(unit, seed).items()]
        from unseen.papers.rotated_digits import Protocol
        from unseen.shifts.builtin.digit_images import mnist

        return rotated(seed, *mnist(), Protocol())

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 5), layout="constrained")
        means, angles = figure.subplots(1, 2, width_ratios=(1, 1.3))
        values = table.set_index(["condition", "metric"]).value.sort_index()
        names = [condition.name for condition in self.conditions]
        rows = np.arange(len(names))[::-1]
        for metric, colour in ((UNSEEN, "#d55e00"), (SOURCES, "#0072b2")):
            for name, row in zip(names, rows, strict=True):
                if (name, metric) in values.index:
                    found = mean_interval(values.loc[(name, metric)])
                    bars = [[found.estimate - found.low], [found.high - found.estimate]]
                    label = metric if name == "erm" else None
                    means.errorbar(found.estimate, row, xerr=bars, fmt="o", color=colour, ms=5, label=label)
        means.set(xlabel="accuracy, mean and 95 % interval over seeds")
        means.set_yticks(rows, names)
        means.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        places = np.arange(len(TARGETS))
        for name, style in _STYLES.items():
            heights = [values.loc[(name, target)].mean() for target in TARGETS]
            angles.plot(places, heights, linestyle="", label=name, **style)
        angles.set(ylabel="accuracy at an unseen angle")
        angles.set_xticks(places, TARGETS, rotation=40, ha="right")
        angles.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize="small")
        for axes in (means, angles):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def rotated(seed: int, images: Any, digits: Any, protocol: Any) -> list[Row]:
    """All conditions of one seed; those of DRM share one network for each set of source angles."""
    found: dict[str, dict[str, float]] = {condition.name: {} for condition in DRMReproduction.conditions}
    for sources in ANGLES:
        for name, accuracies in _from_sources(seed, images, digits, sources, protocol).items():
            found[name] |= {at(sources, angle): value for angle, value in accuracies.items()}
    for measured in found.values():
        for mean, names in ((UNSEEN, TARGETS), (SOURCES, SEEN)):
            if all(name in measured for name in names):  # adaptation sees unseen angles alone
                measured[mean] = float(np.mean([measured[name] for name in names]))
    return [
        Row(name, metric, value) for name, measured in found.items() for metric, value in measured.items()
    ]


def _from_sources(
    seed: int, images: Any, digits: Any, sources: tuple[int, ...], protocol: Any
) -> dict[str, dict[int, float]]:
    """Condition -> angle -> accuracy, trained on some angles."""
    from unseen.networks.steering import Steering
    from unseen.papers import rotated_digits as rd

    data = rd.rotated_digits(images, digits, seed, sources, ANGLES[sources], protocol)
    tests, drm = data.tests, Spec.make("drm", discriminator=64)
    members = [rd.trained(Spec("erm"), data, 100 * i + seed, protocol) for i in range(len(sources) + 1)]
    heads: Any = rd.trained(drm, data, seed, protocol)
    random: Any = rd.trained(drm, data, seed, protocol, domain=rd.shuffled(data.domain, seed))

    def steered(network: Any, size: int = protocol.test, **options: Any) -> dict[int, float]:
        steering = Steering(**options)
        return {angle: rd.steered_accuracy(network, test, steering, size) for angle, test in tests.items()}

    mixed = rd.mixed_stream(heads, tests, 32, seed)
    rising = sorted(ANGLES[sources])
    return {
        "erm": {angle: rd.ensemble_accuracy(members[:1], test) for angle, test in tests.items()},
        "erm ensemble": {angle: rd.ensemble_accuracy(members, test) for angle, test in tests.items()},
        "shared": steered(heads, by="shared"),
        "uniform": steered(heads, by="uniform"),
        "example": steered(heads, unit="example"),
        "batch": steered(heads),
        "batch of 32": steered(heads, 32),
        "batch of 8": steered(heads, 8),
        "soft": steered(heads, gamma=1.0),
        "prototype": steered(heads, by="prototype"),
        "cosine": steered(heads, by="prototype", metric="cosine"),
        "discriminator": steered(heads, by="discriminator"),
        "mixed, batch": mixed["batch"],
        "mixed, group": mixed["group"],
        "adapted, rising": rd.adapted(heads, tests, rising, 32),
        "adapted, falling": rd.adapted(heads, tests, rising[::-1], 32),
        "shuffled": steered(random),
        "oracle": {angle: rd.oracle_accuracy(heads, test) for angle, test in tests.items()},
    }


def left_out(objective: str, seed: int, shift: Any = None, **settings: Any) -> dict[str, float]:
    """Condition -> mean accuracy on a domain of an image folder that was left out; settings as in
    `unseen.papers.left_out_domains.left_out_networks`."""
    from unseen.papers.left_out_domains import left_out_accuracy, left_out_networks

    if objective == "erm":
        return {"erm": float(np.mean(list(left_out_accuracy(Spec("erm"), seed, shift, **settings).values())))}
    networks = left_out_networks(Spec.make("drm", discriminator=64), seed, shift, **settings)
    found = [_steered_ways(network, data, seed) for _, network, data in networks]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _steered_ways(network: Any, data: Any, seed: int) -> dict[str, float]:
    """Condition -> accuracy on the unseen rows, which arrive in random order."""
    import torch

    from unseen.networks.steering import Steering
    from unseen.papers.rotated_digits import accuracy

    rows = data.split.unseen
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    bank = data.bank(network, rows)

    @torch.no_grad()
    def steered(size: int = len(rows), **options: Any) -> float:
        parts = [Steering(**options).steer(network, part) for part in bank.features.split(size)]
        return accuracy(torch.cat([part.predictions for part in parts]), bank.labels)

    with torch.no_grad():
        oracle = Steering().steer(network, bank.features)
    return {
        "shared": steered(by="shared"),
        "uniform": steered(by="uniform"),
        "example": steered(unit="example"),
        "batch": steered(),
        "batch of 32": steered(32),
        "soft": steered(gamma=1.0),
        "prototype": steered(by="prototype"),
        "cosine": steered(by="prototype", metric="cosine"),
        "discriminator": steered(by="discriminator"),
        "oracle": accuracy(oracle.predictions, bank.labels) + oracle.adaptivity_gap(bank.labels),
    }


# Colours after Okabe & Ito (2008).
_STYLES: dict[str, dict[str, Any]] = {
    "erm": {"color": "#000000", "marker": "o"},
    "uniform": {"color": "#999999", "marker": "s"},
    "example": {"color": "#e69f00", "marker": "v"},
    "batch": {"color": "#d55e00", "marker": "D"},
    "oracle": {"color": "#0072b2", "marker": "_", "ms": 14, "mew": 2},
}
