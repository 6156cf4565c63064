"""What decides whether test-time adaptation helps: the order in which examples arrive, and how long it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from unseen.adaptation.evaluate import Reset, run_stream, source_batches
from unseen.errors import InputError, nearest
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.digits_and_letters import corrupted_once, digits_and_letters, trained
from unseen.registry import Spec, adaptation, papers
from unseen.shifts import Shift
from unseen.shifts.opening import open_shift
from unseen.shifts.preprocessing import ImagePreprocessing
from unseen.shifts.sampling import derive_seed
from unseen.shifts.streams import Stream, correlated, corruption_drift, mixed, ordered

KINDS = ("gaussian_noise", "impulse_noise", "fog", "brightness", "contrast", "pixelate")
"""Domains of the stream, one after the other."""
HELD_OUT = ("speckle_noise", "gaussian_blur", "spatter")
"""Corruptions that rates are chosen on: the extra ones of ImageNet-C (but saturate, which needs colour)."""
MILD, HARD = 1, 3
"""Severities: of the streams that compare orders of arrival, and of the long one and that of the held-out ones."""
RATES = (0.0003, 0.003, 0.03, 0.1, 0.3)
"""From the methods' defaults to the one with which Tent, on seed 99, which is none of those below, lost all in two
rounds of the long stream."""
TUNED: Mapping[str, str] = {
    "tent": "tent(optimizer='sgd')",
    "tent, resets": "tent(optimizer='sgd')",
    "eata": "eata(similarity=0.4)",
    "sar": "sar(recovery=0.1)",
    "roid": "roid(augment='images-unmirrored')",
}
"""All with the same optimizer, each with the rate of `RATES` that is best for it. EATA's similarity is its authors'
for few classes; SAR's threshold of recovery is their 0.2 of 1,000 classes in proportion to the largest entropy."""
FAST = "tent, highest rate"
METHODS: Mapping[str, str] = {
    "source": "source",
    "bn-batch": "bn-batch",
    "bn-mixed": "bn-mixed",
    **TUNED,
    FAST: f"tent(optimizer='sgd', learning_rate={RATES[-1]})",
    "lame": "lame",
}
STEADY = ("tent, resets", "eata", "sar", "roid")
RESET = 25
"""Batches after which "tent, resets" forgets."""
CLEAN = "no corruption"
STREAMS = ("i.i.d.", "mixed", "correlated")
FIRST, LAST = "first round", "last round"
RATE = "learning rate"


def gain(measured: Measured, method: str, metric: str) -> float:
    """Error of the network as it is minus that of the method."""
    return measured["source", metric] - measured[method, metric]


def loss(measured: Measured, method: str) -> float:
    """Error of the method minus that of bn-batch, which learns nothing, in the last round of the long stream."""
    return measured[method, LAST] - measured["bn-batch", LAST]


def harm(measured: Measured) -> float:
    """Largest error of a tuned method minus that of bn-batch, i.i.d. batches."""
    return max(measured[name, "i.i.d."] for name in TUNED) - measured["bn-batch", "i.i.d."]


@papers.register(
    "adaptation-compared",
    summary="The order of arrival decides which test-time adaptation helps, and time ends Tent",
)
class AdaptationCompared(Reproduction):
    card = Card(
        number=91,
        title="Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior Correction",
        authors="Robert A. Marsden, Mario Döbler, Bin Yang; with Boudiaf et al. 2022 (LAME, arXiv 2201.05718)",
        venue="WACV 2024",
        arxiv="2306.00650",
        claim="Statistics of the batch help where batches are i.i.d. and of one domain; label correlation and mixed "
        "domains undo it; Tent collapses in time; LAME helps on correlated labels only.",
        here="36 classes: MNIST's digits and letters printed in 21 fonts (14 x 14), 6 corruptions; a small CNN with "
        "batch normalisation, batches of 64; 10 rounds through stronger corruptions for the long stream. Every method "
        "has the learning rate, of five, that is best for it on other images under other corruptions, i.i.d.",
        not_here="ImageNet-C and its variants; methods with a memory (CoTTA, RoTTA) on correlated streams.",
        full="A folder domain/class/image in $UNSEEN_IMAGES, such as ImageNet-C's; $UNSEEN_TRAINED (default clean) "
        "names the domain that the network is trained on, $UNSEEN_HELD_OUT (default the next) the one that rates are "
        "chosen on; the others arrive.",
    )
    conditions = (
        Condition("source", "baseline", "the network as it is"),
        *(Condition(name, "method") for name in METHODS if name not in ("source", "bn-mixed", FAST)),
        Condition(FAST, "reference", "not tuned"),
        Condition("bn-mixed", "reference", "statistics of training count as 16 examples"),
        Condition(f"source, {CLEAN}", "control"),
        Condition(f"bn-batch, {CLEAN}", "control", "nothing to adapt to"),
    )
    metrics: ClassVar[dict[str, str]] = {
        "i.i.d.": "error, batches of one corruption and all classes",
        "mixed": "error, batches of all corruptions and classes",
        "correlated": "error, batches of one corruption and few classes (Dirichlet 0.01)",
        FIRST: "error in the first of the long stream's rounds through the corruptions",
        LAST: "error in the last of them",
        RATE: "chosen on i.i.d. batches of held-out corruptions",
    }
    claims = (
        Claim(
            "statistics help",
            "Error of source minus bn-batch, i.i.d. batches of one corruption",
            value=lambda m: gain(m, "bn-batch", "i.i.d."),
            at_least=0.05,
        ),
        Claim(
            "mixing undoes it",
            "Gain of bn-batch, i.i.d. minus mixed corruptions",
            value=lambda m: gain(m, "bn-batch", "i.i.d.") - gain(m, "bn-batch", "mixed"),
            at_least=0.03,
        ),
        Claim(
            "correlation hurts",
            "Error of bn-batch minus source, correlated labels",
            value=lambda m: -gain(m, "bn-batch", "correlated"),
            at_least=0.1,
        ),
        Claim(
            "Tent collapses",
            "Error of tent minus bn-batch, last round, never reset",
            value=lambda m: loss(m, "tent"),
            at_least=0.2,
        ),
        Claim(
            "Tent collapses when fast",
            "Error of tent with the highest rate minus bn-batch, last round, never reset",
            value=lambda m: loss(m, FAST),
            at_least=0.2,
        ),
        Claim(
            "no harm when tuned",
            "Largest error of a tuned method minus bn-batch, i.i.d. batches",
            value=harm,
            at_most=0.05,
        ),
        *(
            Claim(
                f"{name}: no collapse",
                f"Error of {name} minus bn-batch, last round",
                value=partial(loss, method=name),
                at_most=0.05,
            )
            for name in STEADY
        ),
        Claim(
            "LAME helps when correlated",
            "Error of source minus lame, correlated labels",
            value=lambda m: gain(m, "lame", "correlated"),
            at_least=0.05,
        ),
        Claim(
            "LAME does not when i.i.d.",
            "Error of source minus lame, i.i.d. batches",
            value=lambda m: gain(m, "lame", "i.i.d."),
            at_most=0.01,
        ),
        Claim(
            "no shift, no gain",
            "Error of source minus bn-batch, i.i.d. batches without corruption",
            value=lambda m: m[f"source, {CLEAN}", "i.i.d."] - m[f"bn-batch, {CLEAN}", "i.i.d."],
            at_most=0.01,
            control=True,
        ),
    )
    seeds = (0, 1, 2)

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        return _at_full_scale(seed) if scale == "full" else compared(seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        means = table.groupby(["condition", "metric"]).value.mean().unstack()
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        orders, rounds = figure.subplots(1, 2)
        names = [name for name in METHODS if name in means.index]
        colours = {name: f"C{number}" for number, name in enumerate(names)}
        for axes, metrics in ((orders, STREAMS), (rounds, (FIRST, LAST))):
            for name in names:
                values = means.loc[name, list(metrics)].dropna()
                if len(values):
                    axes.plot(values.index, values, marker="o", markersize=4, color=colours[name], label=name)
            axes.set_ylim(0, 1)
        orders.set_ylabel("error, mean over seeds")
        rounds.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def compared(seed: int, *, each: int = 200, epochs: int = 8, rounds: int = 10) -> list[Row]:
    """Every method's error on every stream; `each` is the number of images a class, for training and for the test."""
    train, test, tuning = digits_and_letters(seed, each)
    mild, hard, other = (
        corrupted_once(corruption_drift(images, kinds, level, seed=seed))
        for images, kinds, level in ((test, KINDS, MILD), (test, KINDS, HARD), (tuning, HELD_OUT, HARD))
    )
    return _rows(train, test, mild, hard, other, seed, epochs, rounds)


def _rows(
    train: Shift, clean: Shift, mild: Shift, hard: Shift, other: Shift, seed: int, epochs: int, rounds: int
) -> list[Row]:
    everything = torch.arange(len(train))
    preprocessing = ImagePreprocessing.fit(train, everything)
    network = trained(train, preprocessing, epochs, seed)
    source = source_batches(train, everything, preprocessing, seed=seed)
    tuning = ordered(other, seed=seed)
    streams = {
        "i.i.d.": ordered(mild, seed=seed),
        "mixed": mixed(mild, seed=seed),
        "correlated": correlated(mild, concentration=0.01, seed=seed),
    }
    trips = [ordered(hard, seed=derive_seed(seed, trip)).rows for trip in range(rounds)]
    long = Stream(hard, torch.cat(trips), 64, "ordered")

    def run(spec: Spec, stream: Stream, reset: Reset) -> pd.DataFrame:
        method = adaptation.build(spec, network=network, seed=seed)
        if method.needs_source:
            method.prepare(source)
        return run_stream(method, stream, preprocessing, reset=reset)

    rows = []
    for name, spec in ((name, Spec.of(text)) for name, text in METHODS.items()):
        reset: Reset = RESET if name == "tent, resets" else "never"
        if name in TUNED:
            tried = [spec.with_options(learning_rate=rate) for rate in RATES]
            spec = min(tried, key=lambda spec: _error(run(spec, tuning, reset)))  # of equal ones the slowest
            rows.append(Row(name, RATE, spec.options["learning_rate"]))
        for arrival, stream in streams.items():
            rows.append(Row(name, arrival, _error(run(spec, stream, reset))))
        outcomes = run(spec, long, reset)
        rows.append(Row(name, FIRST, _error(outcomes[: len(hard)])))
        rows.append(Row(name, LAST, _error(outcomes[-len(hard) :])))
        if name in ("source", "bn-batch"):
            rows.append(
                Row(f"{name}, {CLEAN}", "i.i.d.", _error(run(spec, ordered(clean, seed=seed), reset)))
            )
    return rows


def _error(outcomes: pd.DataFrame) -> float:
    return float(1 - outcomes["correct"].mean())


def _at_full_scale(seed: int) -> list[Row]:
    """Images of the user: a network trained on one domain (a fifth of it kept for the control), rates chosen on
    another; the others arrive."""
    folder = os.environ.get("UNSEEN_IMAGES", "")
    if not os.path.isdir(folder):
        raise InputError(
            f"image folder {folder!r}", "does not exist", "Set UNSEEN_IMAGES to domain/class/image."
        )
    shift, name = open_shift(folder), os.environ.get("UNSEEN_TRAINED", "clean")
    rows = _rows_of(name, shift, shift.domains)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    others = [domain for domain in shift.domains if domain != name]
    if len(others) < 2:
        raise InputError(
            "UNSEEN_IMAGES", f"has {len(shift.domains)} domains", "Give three: trained, tuned on, arriving."
        )
    held_out = os.environ.get("UNSEEN_HELD_OUT", others[0])
    tuning = shift.subset(_rows_of(held_out, shift, others))
    arriving = shift.subset(
        torch.cat([_rows_of(domain, shift, others) for domain in others if domain != held_out])
    )
    train, clean = shift.subset(rows[len(rows) // 5 :]), shift.subset(rows[: len(rows) // 5])
    epochs, rounds = (int(os.environ.get(key, "10")) for key in ("UNSEEN_EPOCHS", "UNSEEN_ROUNDS"))
    return _rows(train, clean, arriving, arriving, tuning, seed, epochs, rounds)


def _rows_of(name: str, shift: Shift, known: Sequence[str]) -> Tensor:
    if name not in known:
        raise InputError(f"domain {name!r}", f"is none of {', '.join(known)}", nearest(name, known))
    return (shift.domain == shift.domains.index(name)).nonzero().squeeze(1)
