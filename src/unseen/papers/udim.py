"""UDIM: does it help on unseen domains that the loss landscape looks alike for perturbed inputs?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

STEPS, WARMUP, BATCH, LENGTHENED = 160, 32, 48, 3.5
STYLES = ("noise", "blur", "contrast", "rotation", "inversion", "gradient")
SOURCES = ("handwritten", "scanned", "printed")
RADII = (0.01, 0.02, 0.03, 0.04, 0.05)
MEAN, WORST, SEEN, SEVERAL = "unseen, mean", "unseen, worst", "occlusion", "left-out source"
LEFT_OUT = "left out"

_SAM = Spec.make("sam", rho=0.2)
_UDIM: dict[str, Any] = {"base": str(_SAM), "warmup_steps": WARMUP, "rho_x": 0.2}
_ADVERSARIAL: dict[str, Any] = {"variance_weight": 0.0, "norm_weight": 0.0, "loss_weight": 1.0}
UPDATES: dict[str, Spec] = {
    "erm": Spec("plain"),
    "sam": _SAM,
    "asam": Spec("asam"),
    "sam-longer": _SAM,
    "sam-adversarial": Spec.make("udim", **_UDIM, **_ADVERSARIAL, sharp=False),
    "sam-adversarial-sharp": Spec.make("udim", **_UDIM, **_ADVERSARIAL),
    "udim-pixel": Spec.make("udim", **_UDIM),
    "udim-style": Spec.make("udim-style", **{**_UDIM, "rho_x": 0.8}),
    "udim-norm-alone": Spec.make("udim", **_UDIM, variance_weight=0.0),
    "udim-variance-alone": Spec.make("udim", **_UDIM, norm_weight=0.0),
}
SEVERAL_SOURCES = ("sam", "udim-pixel")


def _chosen(m: Measured) -> str:
    """The variant of UDIM that is better on the one shift that may be looked at."""
    return max(("udim-pixel", "udim-style"), key=lambda name: m[name, SEEN])


def _gain(metric: str, over: tuple[str, ...], of: str | None = None) -> Callable[[Measured], float]:
    """A metric of UDIM (the chosen variant, unless named) above the best of others."""
    return lambda m: m[of or _chosen(m), metric] - max(m[other, metric] for other in over)


def _flatter(m: Measured) -> float:
    """On how many styles the inconsistency with the source is less than SAM's."""
    return float(sum(m[_chosen(m), f"gap, {style}"] < m["sam", f"gap, {style}"] for style in STYLES))


def _share_of_seeds(value: Callable[[Measured], float]) -> Callable[[pd.DataFrame], float]:
    return lambda table: float(np.mean([value(measured) > 0 for measured in by_seed(table).values()]))


def _single_less_several(m: Measured) -> float:
    return _gain(MEAN, ("sam",), of="udim-pixel")(m) - _gain(SEVERAL, ("sam",), of="udim-pixel")(m)


@papers.register(
    "udim",
    summary="A loss landscape that looks alike for perturbed inputs helps on styles never seen",
    paper="Shin et al. 2024, arXiv 2403.07329",
)
class UDIMReproduction(Reproduction):
    card = Card(
        number=67,
        title="Unknown Domain Inconsistency Minimization for Domain Generalization",
        authors="Shin, Bae, Na, Kim and Moon",
        venue="ICLR 2024",
        arxiv="2403.07329",
        claim="Added to a sharpness-aware update, a penalty on how differently the loss changes around the weights "
        "for source inputs and for inputs perturbed towards sharp spots generalizes better, most of all from a "
        "single source domain.",
        here="1,000 MNIST digits as the only source; 600 held-out digits as they are and in six styles by rule "
        f"(noise, blur, contrast, rotation, inversion, grey ramp behind). Two strided convolutions, {STEPS} steps of "
        f"Adam (1e-3), batch {BATCH}; UDIM after {WARMUP} steps of SAM, without going back to their best state. "
        "Pixel or style perturbation is chosen on 300 other digits under an occlusion. Second task: handwritten, "
        "scanned (optdigits) and printed digits, 500 each, one left out in turn. The same length of the pixels' move "
        "for UDIM and for adversarial training. Chosen by accuracy under occlusion on a seed that is not judged: "
        "SAM's rho (.62, .74, .72 at 0.05, 0.2, 0.5) and, on SAM of 0.05, the pixels' move (UDIM .67, .70, .69, "
        "adversarial training .63, .64, .65 at 0.1, 0.2, 0.4) and the style's (.67, .70 at 0.4, 0.8). The weights of "
        "UDIM's terms are the paper's; three times as large they did better there (.84 after .81).",
        not_here="PACS, OfficeHome, DomainNet and CIFAR-10-C with a pretrained ResNet, the best state of the warm-up, "
        "and a search over radii and weights for every method; equal time is a longer training of SAM.",
        full="PACS or any folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain left out "
        "in turn, with a fine-tuned backbone ($UNSEEN_BACKBONE, default efficientnet-lite0; the paper: ResNet) and "
        "DomainBed's defaults; a third of the steps is warm-up. One GPU a run, 3 to 4 times the cost of ERM.",
    )
    conditions = (
        Condition("erm", "baseline", "plain updates"),
        Condition("sam", "baseline", "rho 0.2: what UDIM is added to"),
        Condition("asam", "baseline", "rho 0.5"),
        Condition("sam-longer", "control", f"SAM for {LENGTHENED:g} times the steps: about UDIM's cost"),
        Condition("sam-adversarial", "control", "SAM, and cross-entropy of ordinary adversarial inputs"),
        Condition("sam-adversarial-sharp", "control", "SAM, and cross-entropy of the very inputs of UDIM"),
        Condition("udim-pixel", "method", "every pixel moves, by a fifth of the image's norm"),
        Condition("udim-style", "method", "mean and contrast of the image move, by 0.8 of their norm"),
        Condition("udim-norm-alone", "control", "udim-pixel without the distance of gradient variances"),
        Condition("udim-variance-alone", "control", "udim-pixel without the norm of perturbed gradients"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "source": "accuracy on held-out digits as they are",
        SEEN: "accuracy on 300 occluded digits: what the variant is chosen by",
        MEAN: "accuracy, mean of the six styles",
        WORST: "accuracy, least of the six styles",
        **{style: "accuracy on this style" for style in STYLES},
        **{f"gap, {style}": "largest difference of the losses on style and source within radii to 0.05, mean of five"
           for style in STYLES},
        SEVERAL: "accuracy on a source that was left out of three, mean of three",
        "seconds": "of training, in the same process",
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }  # fmt: skip
    claims = (
        Claim(
            "styles are a shift",
            "ERM loses accuracy on the styles.",
            value=lambda m: m["erm", "source"] - m["erm", MEAN],
            at_least=0.20,
            control=True,
        ),
        Claim(
            "gains on SAM",
            "UDIM against SAM, mean accuracy on the styles.",
            value=_gain(MEAN, ("sam",)),
            at_least=0.015,
        ),
        Claim(
            "gains on most seeds",
            "Share of seeds on which UDIM is above SAM there.",
            pooled=_share_of_seeds(_gain(MEAN, ("sam",))),
            at_least=0.8,
        ),
        Claim(
            "no worse than adversarial training",
            "UDIM against the better of the two trainings on adversarial inputs.",
            value=_gain(MEAN, ("sam-adversarial", "sam-adversarial-sharp")),
            at_least=-0.005,
        ),
        Claim(
            "not time alone",
            "UDIM against SAM for as many gradients.",
            value=_gain(MEAN, ("sam-longer",)),
            at_least=0.0,
        ),
        Claim(
            "keeps the source",
            "UDIM against SAM on digits as they are.",
            value=_gain("source", ("sam",)),
            at_least=-0.01,
        ),
        Claim(
            "lower inconsistency",
            "Number of styles, of six, for which UDIM's loss around the weights is closer to the source's.",
            value=_flatter,
            at_least=4,
        ),
        Claim(
            "most of all from one source",
            "Pixel UDIM's gain on SAM from one source less that from two.",
            value=_single_less_several,
            at_least=0.0,
        ),
        Claim(
            "what the variances add",
            "Pixel UDIM against its norm term alone.",
            value=_gain(MEAN, ("udim-norm-alone",), of="udim-pixel"),
        ),
        Claim(
            "what the norm adds",
            "Pixel UDIM against its variance term alone.",
            value=_gain(MEAN, ("udim-variance-alone",), of="udim-pixel"),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        if scale == "full":
            return [f"{LEFT_OUT}: {name}" for name in UPDATES if name != "sam-longer"]
        return [*UPDATES, *(f"{SEVERAL}: {name}" for name in SEVERAL_SOURCES)]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        task, _, name = unit.rpartition(": ")
        if task == LEFT_OUT:
            return [Row(name, LEFT_OUT, left_out(name, seed))]
        if task == SEVERAL:
            return [Row(name, SEVERAL, several_sources(name, seed))]
        return single_source(name, seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.8), layout="constrained")
        accuracies, gaps = figure.subplots(1, 2, width_ratios=(1.2, 1))
        names = [condition.name for condition in self.conditions]
        rows = np.arange(len(names))[::-1]
        values = table.set_index(["condition", "metric"]).value
        for offset, (metric, colour) in zip((0.2, 0, -0.2), _COLOURS.items(), strict=True):
            found = [mean_interval(values[name, metric]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            bars = [mean - low, high - mean]
            accuracies.errorbar(mean, rows + offset, xerr=bars, fmt="o", color=colour, label=metric, ms=5)
        accuracies.set(xlabel="accuracy, mean and 95 % interval over seeds", xlim=(0, 1))
        accuracies.set_yticks(rows, names)
        accuracies.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        for name, style in _LINES.items():
            means = [values[name, f"gap, {each}"].mean() for each in STYLES]
            gaps.plot(STYLES, means, label=name, **style)
        gaps.set(
            ylabel="loss on the style less loss on the source,\nlargest around the weights", ylim=(0, None)
        )
        gaps.legend(frameon=False)
        for axes in (accuracies, gaps):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def single_source(
    name: str, seed: int, *, train: int = 1000, test: int = 600, steps: int = STEPS
) -> list[Row]:
    """One condition on MNIST and its styles; a seed's conditions share digits, order and initial weights."""
    import torch

    from unseen.measures.sharpness import inconsistency_curve
    from unseen.papers.digit_styles import UNSEEN_STYLES, accuracy, occlusion
    from unseen.shifts.builtin.digit_images import mnist

    images, digits = mnist()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    parts = order[:train], order[train : train + test], order[train + test : train + test + test // 2]
    (x, y), held, other = ((images[rows, None].float() / 255, digits[rows]) for rows in parts)
    longer = LENGTHENED if name == "sam-longer" else 1
    network, seconds = _trained(name, seed, x, y, torch.zeros_like(y), 1, round(steps * longer))
    found = {
        "source": accuracy(network, *held),
        SEEN: accuracy(network, occlusion(other[0], seed), other[1]),
        "seconds": seconds,
    }
    for style, apply in UNSEEN_STYLES.items():
        styled = apply(held[0], seed)
        found[style] = accuracy(network, styled, held[1])
        found[f"gap, {style}"] = float(
            inconsistency_curve(network, [held], [(styled, held[1])], RADII).mean()
        )
    accuracies = [found[style] for style in UNSEEN_STYLES]
    found |= {MEAN: float(np.mean(accuracies)), WORST: min(accuracies)}
    return [Row(name, metric, value) for metric, value in found.items()]


def several_sources(name: str, seed: int, *, size: int = 500, steps: int = STEPS) -> float:
    """Mean accuracy on handwritten, scanned and printed digits when the two other sources are trained on."""
    import torch

    from unseen.papers.digit_styles import accuracy
    from unseen.shifts.builtin.digit_images import mnist, optdigits, printed

    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 10
    sources = []
    for images, digits in (mnist(), optdigits()):
        rows = torch.randperm(len(digits), generator=generator)[:size]
        sources.append((images[rows, None].float() / 255, digits[rows]))
    sources.append((printed(labels, generator)[:, None].float() / 255, labels))
    found = []
    for left in range(len(sources)):
        rest = [source for index, source in enumerate(sources) if index != left]
        x, y = (torch.cat(parts) for parts in zip(*rest, strict=True))
        domain = torch.arange(len(rest)).repeat_interleave(size)
        network, _ = _trained(name, seed, x, y, domain, len(rest), steps)
        found.append(accuracy(network, *sources[left]))
    return float(np.mean(found))


def _trained(
    name: str, seed: int, x: Any, y: Any, domain: Any, domains: int, steps: int
) -> tuple[Any, float]:
    from unseen.papers.digit_styles import strided_network, train_network

    return train_network(
        strided_network(seed), UPDATES[name], x, y, domain, domains, seed=seed, steps=steps, batch=BATCH
    )


def left_out(name: str, seed: int) -> float:
    """Mean accuracy on a domain of an image folder that was left out, with DomainBed's defaults."""
    from unseen.papers.left_out_domains import left_out_accuracy

    update, steps = UPDATES[name], 5000
    if update.name.startswith("udim"):
        update = update.with_options(warmup_steps=steps // 3)
    return float(np.mean(list(left_out_accuracy(Spec("erm"), seed, update=update, steps=steps).values())))


# Colours after Okabe & Ito (2008).
_COLOURS = {"source": "#0072b2", MEAN: "#d55e00", WORST: "#999999"}
_LINES: dict[str, dict[str, Any]] = {
    "sam": {"color": "#000000", "marker": "o"},
    "sam-adversarial-sharp": {"color": "#999999", "marker": "X"},
    "udim-pixel": {"color": "#0072b2", "marker": "s"},
    "udim-style": {"color": "#d55e00", "marker": "^"},
}
