"""What decides whether test-time adaptation helps: the order in which examples arrive, and how long it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from unseen.adaptation.evaluate import Reset, run_stream, source_batches
from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.printed_letters import LETTERS, letters
from unseen.registry import adaptation, papers
from unseen.shifts import Shift
from unseen.shifts.builtin.digit_images import at_most, mnist, stratified_parts
from unseen.shifts.opening import open_shift
from unseen.shifts.preprocessing import ImagePreprocessing
from unseen.shifts.sampling import derive_seed
from unseen.shifts.streams import Stream, correlated, corruption_drift, mixed, ordered
from unseen.training.system import seeded

KINDS = ("gaussian_noise", "impulse_noise", "fog", "brightness", "contrast", "pixelate")
"""Domains of the stream, one after the other."""
MILD, HARD = 1, 3
"""Severities: of the streams that compare orders of arrival, and of the long one."""
RATE = "learning_rate=0.3"
"""On seed 99, which is none of those below, Tent lost little in six rounds with 0.1, and with 0.3 all in two."""
METHODS: Mapping[str, str] = {
    "source": "source",
    "bn-batch": "bn-batch",
    "bn-mixed": "bn-mixed",
    "tent": f"tent(optimizer='sgd', {RATE})",
    "tent, resets": f"tent(optimizer='sgd', {RATE})",
    "eata": f"eata({RATE}, similarity=0.4)",
    "sar": f"sar({RATE}, recovery=0.1)",
    "roid": f"roid({RATE}, augment='images-unmirrored')",
    "lame": "lame",
}
"""All that take steps take them with the same optimizer and learning rate. EATA's similarity is its authors' for few
classes; SAR's threshold of recovery is their 0.2 of 1,000 classes in proportion to the largest entropy of 36."""
STEADY = ("tent, resets", "eata", "sar", "roid")
RESET = 25
"""Batches after which "tent, resets" forgets."""
CLEAN = "no corruption"
STREAMS = ("i.i.d.", "mixed", "correlated")
FIRST, LAST = "first round", "last round"


def gain(measured: Measured, method: str, metric: str) -> float:
    """Error of the network as it is minus that of the method."""
    return measured["source", metric] - measured[method, metric]


def loss(measured: Measured, method: str) -> float:
    """Error of the method minus that of bn-batch, which learns nothing, in the last round of the long stream."""
    return measured[method, LAST] - measured["bn-batch", LAST]


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
        "batch normalisation, batches of 64; 10 rounds through stronger corruptions for the long stream.",
        not_here="ImageNet-C and its variants; methods with a memory (CoTTA, RoTTA) on correlated streams.",
        full="A folder domain/class/image in $UNSEEN_IMAGES, such as ImageNet-C's; $UNSEEN_TRAINED (default clean) "
        "names the domain that the network is trained on, the others arrive.",
    )
    conditions = (
        Condition("source", "baseline", "the network as it is"),
        *(Condition(name, "method") for name in METHODS if name not in ("source", "bn-mixed")),
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


def compared(seed: int, *, each: int = 250, epochs: int = 8, rounds: int = 10) -> list[Row]:
    """Every method's error on every stream; `each` is the number of images a class, for training and for the test."""
    train, test = _data(seed, each)
    mild, hard = (_corrupted_once(corruption_drift(test, KINDS, level, seed=seed)) for level in (MILD, HARD))
    return _rows(train, test, mild, hard, seed, epochs, rounds)


def _rows(
    train: Shift, clean: Shift, mild: Shift, hard: Shift, seed: int, epochs: int, rounds: int
) -> list[Row]:
    everything = torch.arange(len(train))
    preprocessing = ImagePreprocessing.fit(train, everything)
    network = _trained(train, preprocessing, epochs, seed)
    source = source_batches(train, everything, preprocessing, seed=seed)
    streams = {
        "i.i.d.": ordered(mild, seed=seed),
        "mixed": mixed(mild, seed=seed),
        "correlated": correlated(mild, concentration=0.01, seed=seed),
    }
    trips = [ordered(hard, seed=derive_seed(seed, trip)).rows for trip in range(rounds)]
    long = Stream(hard, torch.cat(trips), 64, "ordered")
    rows = []
    for name, spec in METHODS.items():
        method = adaptation.build(spec, network=network, seed=seed)
        if method.needs_source:
            method.prepare(source)
        reset: Reset = RESET if name == "tent, resets" else "never"
        for arrival, stream in streams.items():
            rows.append(Row(name, arrival, _error(run_stream(method, stream, preprocessing, reset=reset))))
        outcomes = run_stream(method, long, preprocessing, reset=reset)
        rows.append(Row(name, FIRST, _error(outcomes[: len(hard)])))
        rows.append(Row(name, LAST, _error(outcomes[-len(hard) :])))
        if name in ("source", "bn-batch"):
            outcomes = run_stream(method, ordered(clean, seed=seed), preprocessing)
            rows.append(Row(f"{name}, {CLEAN}", "i.i.d.", _error(outcomes)))
    return rows


def _corrupted_once(shift: Shift) -> Shift:
    """The corrupted images themselves, which would be made anew whenever they arrive."""
    return replace(shift, inputs=shift.inputs.take(torch.arange(len(shift))))


def _error(outcomes: pd.DataFrame) -> float:
    return float(1 - outcomes["correct"].mean())


def _data(seed: int, each: int) -> tuple[Shift, Shift]:
    """Digits and letters for training, and others: uint8 images (N, 1, 14, 14), `each` of each of
    36 classes (of the letters, which are drawn at random, on average)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    images, labels = mnist()
    small = nn.functional.avg_pool2d(images.unsqueeze(1).float(), 2).round().to(torch.uint8)
    found = []
    for name, half in zip(("train", "test"), stratified_parts(labels, 2, generator), strict=True):
        rows = at_most(half, labels, 10 * each)
        printed, numbers = letters(len(LETTERS) * each, generator)
        pixels = ((printed * 0.3 + 0.15).clamp(0, 1) * 255).round().to(torch.uint8)
        found.append(_shift(name, torch.cat([small[rows], pixels]), torch.cat([labels[rows], numbers + 10])))
    return found[0], found[1]


def _shift(name: str, images: Tensor, labels: Tensor) -> Shift:
    domain = torch.zeros_like(labels)
    return Shift(name, "image", images, labels, domain, (*map(str, range(10)), *LETTERS), ("clean",))


def _normalised_cnn(shape: list[int], classes: int, width: int = 16) -> Network:
    """The registry's cnn with batch in place of group normalisation."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for outer, kernel, stride in ((width, 5, 2), (2 * width, 3, 2), (4 * width, 3, 1)):
        convolution = nn.Conv2d(channels, outer, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
        channels = outer
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, classes)


def _trained(train: Shift, preprocessing: ImagePreprocessing, epochs: int, seed: int) -> Network:
    with seeded(derive_seed(seed, 2)):
        network = _normalised_cnn(preprocessing.shape, len(train.classes)).train()
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    parts = [
        rows for _ in range(epochs) for rows in torch.randperm(len(train), generator=generator).split(64)
    ]
    batches = [rows for rows in parts if len(rows) > 1]  # batch normalisation needs two
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / len(batches))
        optimizer.zero_grad(set_to_none=True)
        x = preprocessing.finish(torch.as_tensor(train.take(rows)))
        nn.functional.cross_entropy(network(x), train.labels[rows]).backward()
        optimizer.step()
    return network.eval()


def _at_full_scale(seed: int) -> list[Row]:
    """Images of the user: a network trained on one domain (a fifth of it kept for the control), the others arrive."""
    folder = os.environ.get("UNSEEN_IMAGES", "")
    if not os.path.isdir(folder):
        raise InputError(
            f"image folder {folder!r}", "does not exist", "Set UNSEEN_IMAGES to domain/class/image."
        )
    shift, name = open_shift(folder), os.environ.get("UNSEEN_TRAINED", "clean")
    if name not in shift.domains:
        raise InputError(f"domain {name!r}", "is not in UNSEEN_IMAGES", nearest(name, shift.domains))
    own = shift.domain == shift.domains.index(name)
    rows, other_rows = own.nonzero().squeeze(1), (~own).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    train_rows, clean_rows = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    epochs, rounds = (int(os.environ.get(key, "10")) for key in ("UNSEEN_EPOCHS", "UNSEEN_ROUNDS"))
    train, clean, others = (shift.subset(part) for part in (train_rows, clean_rows, other_rows))
    return _rows(train, clean, others, others, seed, epochs, rounds)
