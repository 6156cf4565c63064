"""Data-free extrapolation: do domains from written knowledge stand in for collected ones, at a fixed budget?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.extrapolation import ListProposer, ProceduralGenerator, extrapolate, mix, novelty_report
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.digit_styles import accuracy, strided_network, train_network
from unseen.papers.extrapolated_images import SHARES, left_out_accuracies
from unseen.papers.written_styles import (
    augmented,
    knowledge,
    plain_fonts,
    random_changes,
    random_ranges,
    render,
)
from unseen.registry import Spec, papers
from unseen.shifts.arrays import from_arrays
from unseen.shifts.builtin.digit_images import mnist, optdigits, stratified_parts
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift
from unseen.studies.statistics import mean_interval

BUDGET, SMALL_BUDGET = 3200, 1600
STEPS, BATCH = 500, 64
COUNTS = (1, 4, 16, 64)
DIGITS = tuple("0123456789")
MNIST, OPTDIGITS, LEFT_OUT = "mnist", "optdigits", "left out"
DISTANCE, AUC, COPIES = "distance to the tests", "auc against the tests", "near copies"
SOURCE, MOVED = "optdigits only", "optdigits, augmented"
BOTH, BOTH_MOVED = "optdigits + knowledge", "optdigits + knowledge, augmented"
BOTH_RANDOM = "optdigits + random"

DATA_FREE = (
    *(f"{name} {count}" for name in ("knowledge", "fonts", "random") for count in COUNTS),
    "ranges 16",
    "ranges 64",
)
SINGLE_SOURCE = {
    SOURCE: (None, False),
    MOVED: (None, True),
    BOTH: ("knowledge", False),
    BOTH_RANDOM: ("random", False),
    BOTH_MOVED: ("knowledge", True),
}
"""Condition -> proposer of half the examples, and whether all are augmented."""


def _gain(metric: str, condition: str, over: str) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] - m[over, metric]


@papers.register(
    "data-free-extrapolation",
    summary="Domains from written knowledge, rendered: better than fonts or random changes at a fixed budget?",
    paper="Li et al. 2024, arXiv 2403.05523",
)
class DataFreeExtrapolation(Reproduction):
    card = Card(
        number=4,
        title="Beyond finite data: towards data-free out-of-distribution generalization via extrapolation",
        authors="Li, Ren, Deng, Xu, Gao, Ngai and Wang",
        venue="arXiv 2024",
        arxiv="2403.05523",
        claim="Training on domains that a language model proposes and a generator draws, beside or in place of "
        "collected ones, generalizes better than training on collected domains; more proposed domains help more.",
        here="No language model and no diffusion model: a table of 16 places where people write numbers, in 4 hands, "
        "written by hand, stands in for the first, a renderer of 21 fonts (turned, slanted, bent, widened, blurred) "
        f"for the second. Data-free: {BUDGET:,} rendered digits of 1 to 64 domains, drawn from the 64 with each "
        "seed; tests are 1,800 MNIST digits and all 1,797 of optdigits. Single source: "
        f"{SMALL_BUDGET:,} examples, all optdigits or half of them rendered; test MNIST. Two strided convolutions "
        f"and 64 units, {STEPS} steps of {BATCH} examples, Adam (1e-3), no choice on any test. The table and the "
        "renderer were written with the look of handwritten digits known, as a language model would know it. The "
        "thresholds are older than any number here; on a seed that is not judged augmentation (.58 on MNIST) was "
        "ahead of synthetic domains (.46), and nothing was changed for that.",
        not_here="Language and diffusion models, filters, PACS, VLCS, OfficeHome and DomainNet, the query styles, and "
        "any statement on what a generator's own training data hold.",
        full="PACS or any folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), each domain left "
        "out in turn; 64 domains from a chat model ($UNSEEN_ENDPOINT, $UNSEEN_LANGUAGE_MODEL), 20 images a class in "
        "each from diffusers ($UNSEEN_TEXT_TO_IMAGE), a fine-tuned backbone ($UNSEEN_BACKBONE). GPU, hours.",
    )
    conditions = (
        *(Condition(f"knowledge {n}", "method", f"{n} domains of the written table") for n in COUNTS),
        *(Condition(f"fonts {n}", "baseline", f"{n} domains, each a font at a size") for n in COUNTS),
        *(
            Condition(f"random {n}", "control", f"{n} random affine changes and noises of one font")
            for n in COUNTS
        ),
        *(
            Condition(f"ranges {n}", "control", f"{n} random settings of the renderer, any font")
            for n in (16, 64)
        ),
        Condition(SOURCE, "control", "the same budget without synthesis"),
        Condition(MOVED, "baseline", "the same, turned, slanted, scaled and moved anew at each use"),
        Condition(BOTH, "method", "half of the budget from 64 domains of the table"),
        Condition(BOTH_RANDOM, "control", "half of the budget from 64 random changes of one font"),
        Condition(BOTH_MOVED, "method", "half from the table, and all augmented"),
        Condition("mnist", "reference", f"supervised on {BUDGET:,} other MNIST digits"),
        *(
            Condition(name, "method" if share else "baseline", f"{share:.0%} generated (full scale only)")
            for name, share in SHARES.items()
        ),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        MNIST: "accuracy on 1,800 MNIST digits",
        OPTDIGITS: "accuracy on 1,797 optdigits",
        DISTANCE: "energy distance of a synthetic domain to the nearer test, mean over domains",
        AUC: "of a linear classifier of a synthetic domain against the tests, mean over domains",
        COPIES: "share of rendered digits that nearly equal a test digit",
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "the other digits are a shift",
            "MNIST accuracy that training on optdigits loses against training on MNIST.",
            value=_gain(MNIST, "mnist", SOURCE),
            at_least=0.20,
            control=True,
        ),
        Claim(
            "no leak",
            "Share of rendered digits (16 domains of the table) that nearly equal a test digit.",
            value=lambda m: m["knowledge 16", COPIES],
            at_most=0.01,
            control=True,
        ),
        Claim(
            "more domains, same budget",
            "MNIST accuracy of 16 domains above that of one.",
            value=_gain(MNIST, "knowledge 16", "knowledge 1"),
            at_least=0.06,
        ),
        Claim(
            "knowledge over fonts",
            "The lesser gain over plain fonts on MNIST, 16 and 64 domains.",
            value=lambda m: min(_gain(MNIST, f"knowledge {n}", f"fonts {n}")(m) for n in (16, 64)),
            at_least=0.08,
        ),
        Claim(
            "knowledge over random changes",
            "The lesser gain over random changes of one font on MNIST, 16 and 64 domains.",
            value=lambda m: min(_gain(MNIST, f"knowledge {n}", f"random {n}")(m) for n in (16, 64)),
            at_least=0.03,
        ),
        Claim(
            "single source: over augmentation",
            "MNIST accuracy of optdigits with synthetic domains above optdigits with augmentation.",
            value=_gain(MNIST, BOTH, MOVED),
            at_least=0.02,
        ),
        Claim(
            "single source: over the same budget",
            "The same above optdigits alone.",
            value=_gain(MNIST, BOTH, SOURCE),
            at_least=0.05,
        ),
        Claim(
            "single source: not any synthesis",
            "Domains of the table above random changes of one font, both mixed with optdigits.",
            value=_gain(MNIST, BOTH, BOTH_RANDOM),
            at_least=0.02,
        ),
        Claim(
            "no collected data needed",
            "16 domains of the table above training on the other real set, the lesser gain of both tests.",
            value=lambda m: min(
                m["knowledge 16", MNIST] - m[SOURCE, MNIST],
                m["knowledge 16", OPTDIGITS] - m["mnist", OPTDIGITS],
            ),
            at_least=0.05,
        ),
        Claim(
            "saturation",
            "MNIST accuracy of 64 domains above 16, at the same budget.",
            value=_gain(MNIST, "knowledge 64", "knowledge 16"),
        ),
        Claim(
            "what lies in the ranges",
            "The table above random settings of the same renderer on MNIST, 16 domains.",
            value=_gain(MNIST, "knowledge 16", "ranges 16"),
        ),
        Claim(
            "beside augmentation",
            "MNIST accuracy of optdigits with synthetic domains, all augmented, above augmentation alone.",
            value=_gain(MNIST, BOTH_MOVED, MOVED),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        laptop = [*DATA_FREE, *SINGLE_SOURCE, "mnist"]
        return laptop if scale == "laptop" else laptop + [f"{LEFT_OUT}: {name}" for name in SHARES]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit.startswith(LEFT_OUT):
            condition = unit.removeprefix(f"{LEFT_OUT}: ")
            found = left_out_accuracies(condition, seed)
            return [Row(condition, LEFT_OUT, float(np.mean(list(found.values()))))]
        if unit in SINGLE_SOURCE:
            return single_source(unit, seed)
        return from_mnist(seed) if unit == "mnist" else data_free(unit, seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
        means = table.groupby(["condition", "metric"]).value
        for axes, metric, other, place in ((left, MNIST, SOURCE, 64), (middle, OPTDIGITS, "mnist", 1)):
            for name, colour in _COLOURS.items():
                counts = [n for n in COUNTS if (f"{name} {n}", metric) in means.groups]
                found = [mean_interval(means.get_group((f"{name} {n}", metric))) for n in counts]
                mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
                axes.errorbar(
                    counts, mean, yerr=[mean - low, high - mean], fmt="o-", color=colour, label=_NAMES[name]
                )
            reference = means.get_group((other, metric)).mean()
            axes.axhline(reference, color="#000000", linestyle=":", linewidth=1.2)
            side = "left" if place == 1 else "right"
            said = f"trained on {other.split()[0]}"
            axes.text(place, reference + 0.006, said, ha=side, va="bottom", fontsize="small")
            axes.set_xscale("log", base=2)
            axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
            axes.set(xlabel=f"synthetic domains, {BUDGET:,} digits in all", ylabel=f"accuracy on {metric}")
            axes.set_ylim(0.1, 0.8)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            frameon=False,
            fontsize="small",
        )
        names = list(SINGLE_SOURCE)[::-1]
        found = [mean_interval(means.get_group((name, MNIST))) for name in names]
        mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
        colours = [_COLOURS["knowledge"] if "knowledge" in name else "#999999" for name in names]
        right.barh(
            [name.replace(", ", ",\n") for name in names], mean, xerr=[mean - low, high - mean], color=colours
        )
        right.set(xlabel=f"accuracy on mnist, {SMALL_BUDGET:,} training digits")
        for axes in (left, middle, right):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def synthetic_digits(name: str, count: int, per_cell: int, seed: int) -> Shift:
    """A shift of `count` domains by one of the proposers; of a list of 64, the seed says which."""
    proposers = {"random": random_changes, "ranges": random_ranges}
    if name in proposers:
        proposer: Any = proposers[name](derive_seed(seed, 3))
    else:
        domains = (knowledge if name == "knowledge" else plain_fonts)().domains
        order = torch.randperm(len(domains), generator=torch.Generator().manual_seed(derive_seed(seed, 4)))
        proposer = ListProposer([domains[i] for i in order.tolist()])
    return extrapolate(
        "recognition of digits",
        DIGITS,
        proposer,
        ProceduralGenerator(render, "fonts of Matplotlib", "Bitstream Vera, OFL"),
        domains=count,
        per_cell=per_cell,
        seed=derive_seed(seed, 5),
    )


def collected(seed: int) -> tuple[Shift, Shift]:
    """The two tests, as domains of one shift: 1,800 MNIST digits and optdigits; and 3,200 MNIST digits to train on."""
    images, labels = mnist()
    parts = stratified_parts(labels, 25, torch.Generator().manual_seed(derive_seed(seed, 6)))
    train, test = torch.cat(parts[:16]), torch.cat(parts[16:])
    other, other_labels = optdigits()
    tests = from_arrays(
        torch.cat([images[test], other]),
        torch.cat([labels[test], other_labels]),
        torch.repeat_interleave(torch.tensor([len(test), len(other)])),
        classes=DIGITS,
        domains=(MNIST, OPTDIGITS),
        name="tests",
    )
    source = from_arrays(
        images[train], labels[train], torch.zeros_like(labels[train]), classes=DIGITS, domains=(MNIST,)
    )
    return tests, source


def data_free(condition: str, seed: int, *, budget: int = BUDGET, steps: int = STEPS) -> list[Row]:
    name, _, number = condition.partition(" ")
    count = int(number)
    synthetic = synthetic_digits(name, count, budget // (len(DIGITS) * count), seed)
    tests, _ = collected(seed)
    mixed = mix(tests, synthetic, share=1, budget=len(synthetic), unseen=tests.domains, seed=seed)
    rows = _judged(condition, mixed, tests.domains, tests, seed, steps)
    if count == 16:
        report = novelty_report(synthetic, tests, unseen=tests.domains, examples=200, seed=seed)
        for metric, column in ((DISTANCE, "distance"), (AUC, "auc"), (COPIES, "copies")):
            rows.append(Row(condition, metric, float(report[f"{column} unseen"].mean())))
    return rows


def single_source(condition: str, seed: int, *, budget: int = SMALL_BUDGET, steps: int = STEPS) -> list[Row]:
    name, augment = SINGLE_SOURCE[condition]
    tests, _ = collected(seed)
    half = budget // 2
    synthetic = synthetic_digits(name or "random", 64, max(2, -(-half // (64 * len(DIGITS)))), seed)
    mixed = mix(
        tests,
        synthetic,
        share=0.5 if name else 0.0,
        budget=budget,
        unseen=MNIST,
        as_domain="synthetic",
        seed=seed,
    )
    rows = _judged(condition, mixed, (MNIST,), tests, seed, steps, augment=augment)
    return [row for row in rows if row.metric == MNIST]  # the others were trained on


def from_mnist(seed: int, *, steps: int = STEPS) -> list[Row]:
    tests, source = collected(seed)
    return _judged("mnist", source, (), tests, seed, steps)


def _judged(
    condition: str,
    shift: Shift,
    unseen: tuple[str, ...],
    tests: Shift,
    seed: int,
    steps: int,
    *,
    augment: bool = False,
) -> list[Row]:
    """Train on all of a shift but its unseen domains, every example as often as another; accuracy on both tests."""
    held_out = [shift.domains.index(name) for name in unseen]
    rows = (~torch.isin(shift.domain, torch.tensor(held_out, dtype=torch.int64))).nonzero().squeeze(1)
    x, y = _pixels(shift.take(rows)), shift.labels[rows]
    if augment:  # as many fresh copies as training uses an example, and one
        copies = steps * BATCH // len(x) + 1
        generator = torch.Generator().manual_seed(derive_seed(seed, 7))
        x, y = torch.cat([augmented(x, generator) for _ in range(copies)]), y.repeat(copies)
    network, _ = train_network(
        strided_network(seed),
        Spec("plain"),
        x,
        y,
        torch.zeros_like(y),
        1,
        seed=seed,
        steps=steps,
        batch=BATCH,
    )
    found = []
    for number, name in enumerate(tests.domains):
        chosen = (tests.domain == number).nonzero().squeeze(1)
        found.append(
            Row(condition, name, accuracy(network, _pixels(tests.take(chosen)), tests.labels[chosen]))
        )
    return found


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255


_COLOURS = {
    "knowledge": "#0072b2",
    "fonts": "#e69f00",
    "random": "#999999",
    "ranges": "#009e73",
}  # Okabe & Ito
_NAMES = {
    "knowledge": "written table",
    "fonts": "plain fonts",
    "random": "random changes, one font",
    "ranges": "random settings of the renderer",
}
