"""OpenOOD's patterns on digits: near is harder than far, and no detector wins everywhere."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Bank, Network, build_network
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.printed_letters import digit_task, halved, letters
from unseen.registry import detectors, papers
from unseen.shifts.builtin.digit_images import SIDE, over_photographs
from unseen.shifts.opening import open_shift
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.sampling import derive_seed
from unseen.studies import Study
from unseen.training.data import network_outputs
from unseen.training.system import seeded

KNOWN = 7
"""Digits 0 to 6 are learnt, 7 to 9 are not."""
DETECTORS = (
    "msp", "max-logit", "energy", "odin", "mc-dropout", "react", "dice", "ash", "scale", "adascale", "gradnorm",
    "mahalanobis", "relative-mahalanobis", "mahalanobis-ensemble", "knn", "vim", "gram", "nac", "rankfeat",
    "relation", "lof", "isolation-forest",
)  # fmt: skip
UNTRAINED = "msp, untrained"
SETS = {
    "held-out digits": "near",
    "letters": "near",
    "photographs": "far",
    "scrambled digits": "far",
    "noise": "far",
    "shifted digits": "shifted",
}
"""Name -> how far from the digits that are learnt; shifted ones are of the learnt classes, in other styles."""


def _sets(measured: Measured, nearness: str) -> list[str]:
    return [name for name, kind in SETS.items() if kind == nearness and ("msp", name) in measured]


def _detectors(measured: Measured) -> list[str]:
    return [name for name in DETECTORS if (name, "noise") in measured]


def _mean(measured: Measured, condition: str, nearness: str) -> float:
    return float(np.mean([measured[condition, name] for name in _sets(measured, nearness)]))


def near_to_far(measured: Measured) -> float:
    """AUROC on far minus on near sets, mean over detectors."""
    gaps = [_mean(measured, d, "far") - _mean(measured, d, "near") for d in _detectors(measured)]
    return float(np.mean(gaps))


def winners(measured: Measured) -> float:
    """How many detectors are best on some near or far set."""
    sets = _sets(measured, "near") + _sets(measured, "far")
    return float(len({max(_detectors(measured), key=lambda d: measured[d, name]) for name in sets}))


@papers.register("detectors-compared", summary="Near is harder than far, and no detector wins everywhere")
class DetectorsCompared(Reproduction):
    card = Card(
        number=90,
        title="OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection",
        authors="Jingyang Zhang, Jingkang Yang, Pengyun Wang, Haoqi Wang, Yueqian Lin, Haoran Zhang, et al.",
        venue="arXiv 2023",
        arxiv="2306.09301",
        claim="Near unfamiliar data are harder to detect than far ones, and no post-hoc detector is the best on all.",
        here="A small CNN on MNIST's digits 0 to 6 (14 x 14); 22 detectors as they are, none tuned. Near: digits 7 to "
        "9, printed letters. Far: photographs, scrambled digits, noise.",
        not_here="ImageNet, training-time methods, detectors tuned on unfamiliar validation data, as OpenOOD does.",
        full="Your own folder domain/class/image in $UNSEEN_IMAGES, a tenth of the classes and a domain held out, with "
        "the network of $UNSEEN_NETWORK (default resnet).",
    )
    conditions = (
        Condition("msp", "baseline"),
        *(Condition(name, "method") for name in DETECTORS[1:]),
        Condition(UNTRAINED, "control", "the same network before training: it knows no digit"),
    )
    metrics: ClassVar[dict[str, str]] = {
        name: f"AUROC, ID test digits beside {name} ({kind})" for name, kind in SETS.items()
    }
    claims = (
        Claim(
            "near is harder",
            "AUROC on far data minus that on near data, mean over detectors",
            value=near_to_far,
            at_least=0.05,
        ),
        Claim(
            "relative Mahalanobis near",
            "AUROC of relative-mahalanobis minus mahalanobis on near data (Ren et al. 2021)",
            value=lambda m: _mean(m, "relative-mahalanobis", "near") - _mean(m, "mahalanobis", "near"),
            at_least=0.0,
        ),
        Claim(
            "no winner",
            "Detectors that are the best on one of the near and far sets",
            value=winners,
            at_least=2.0,
        ),
        Claim(
            "training tells",
            "AUROC of msp on held-out digits without training",
            value=lambda m: m[UNTRAINED, "held-out digits"],
            at_most=0.65,
            control=True,
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        return _at_full_scale(seed) if scale == "full" else compared(seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        sets = [name for name in SETS if name in set(table.metric)]
        means = (
            table.groupby(["condition", "metric"])
            .value.mean()
            .unstack()[sets]
            .drop(index=UNTRAINED, errors="ignore")
        )
        kinds = [SETS.get(name, "far") for name in sets]
        near = means[[name for name, kind in zip(sets, kinds, strict=True) if kind == "near"]].mean(axis=1)
        means = means.loc[near.sort_values().index]
        figure = Figure(figsize=(7.5, 0.26 * len(means) + 1.4), layout="constrained")
        axes = figure.subplots()
        styles = {"near": ("#d55e00", "o"), "far": ("#0072b2", "s"), "shifted": ("#7a7f86", "x")}
        for number, (name, kind) in enumerate(zip(sets, kinds, strict=True)):
            colour, marker = styles[kind]
            alpha = 0.45 + 0.5 * (number % 3) / 2
            axes.scatter(
                means[name],
                means.index,
                color=colour,
                marker=marker,
                alpha=alpha,
                label=f"{name} ({kind})",
                s=28,
            )
        axes.axvline(0.5, color="#7a7f86", linewidth=0.8)
        axes.set_xlabel("AUROC, mean over seeds")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.tick_params(labelsize=8)
        return figure


def compared(seed: int, *, train: int = 2000, test: int = 800, epochs: int = 12) -> list[Row]:
    """AUROC of every detector on every set; half of MNIST is for training, the other half for the test."""
    (x, y), known, others = _data(seed, train, test)
    with seeded(derive_seed(seed, 8)):
        network = build_network("cnn", (1, SIDE // 2, SIDE // 2), KNOWN)
        network.featurizer.append(nn.Dropout(0.2))  # type: ignore[operator]  # a Sequential
        untrained = network.state_dict()
        untrained = {name: value.clone() for name, value in untrained.items()}
        _train(network, x, y, epochs, seed)
    built = {name: detectors.build(name) for name in DETECTORS}
    rows = _rows(network, built, (x, y), known, others)
    network.load_state_dict(untrained)
    return rows + [
        row._replace(condition=UNTRAINED)
        for row in _rows(network, {"msp": detectors.build("msp")}, (x, y), known, others)
    ]


def _rows(
    network: Network,
    built: dict[str, Any],
    train: tuple[Tensor, Tensor],
    known: Tensor,
    others: dict[str, Tensor],
) -> list[Row]:
    def outputs(inputs: Tensor) -> Bank:
        return network_outputs(network, Preprocessing(), inputs, observers=list(built.values()))

    learnt = outputs(train[0])
    learnt.labels = train[1]
    familiar, unfamiliar = outputs(known), {name: outputs(inputs) for name, inputs in others.items()}
    rows = []
    for name, detector in built.items():
        scores = detector.fit(learnt).score(familiar)
        for each, bank in unfamiliar.items():
            rows.append(Row(name, each, ood_metrics(scores, detector.score(bank), confidence=None).auroc))
    return rows


def _data(seed: int, train: int, test: int) -> tuple[tuple[Tensor, Tensor], Tensor, dict[str, Tensor]]:
    task = digit_task(seed, train=train, test=test)
    (x, y), (known, labels) = task.train, task.test
    learnt, inside = y < KNOWN, labels < KNOWN
    generator = torch.Generator().manual_seed(derive_seed(seed, 9))
    size = int(inside.sum())
    own = known[inside].flatten(1)
    order = torch.rand(own.shape, generator=generator).argsort(1)
    blank = torch.zeros(size, SIDE, SIDE, dtype=torch.uint8)
    photographs = over_photographs(blank, generator).float().mean(1, keepdim=True) / 255
    styles = [images[shown < KNOWN][: size // 3] for images, shown in list(task.shifted.values())[:3]]
    others = {
        "held-out digits": known[~inside],
        "letters": letters(size, generator)[0],
        "photographs": halved(photographs),
        "scrambled digits": own.gather(1, order).view_as(known[inside]),
        "noise": halved(torch.rand(size, 1, SIDE, SIDE, generator=generator)),
        "shifted digits": torch.cat(styles),
    }
    return (x[learnt], y[learnt]), known[inside], others


def _train(network: Network, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(derive_seed(seed, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=generator).split(64)]
    network.train()
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / len(batches))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    network.eval()


def _at_full_scale(seed: int) -> list[Row]:
    """A study of the user's images: a tenth of the classes near, scrambled images and noise far.

    Every seed holds other classes and another domain out.
    """
    import tempfile

    folder = os.environ.get("UNSEEN_IMAGES", "")
    if not os.path.isdir(folder):
        raise InputError(
            f"image folder {folder!r}", "does not exist", "Set UNSEEN_IMAGES to domain/class/image."
        )
    shift = open_shift(folder)
    count = max(1, len(shift.classes) // 10)
    held = [shift.classes[(seed * count + each) % len(shift.classes)] for each in range(count)]
    options: dict[str, Any] = {
        "unseen": shift.domains[seed % len(shift.domains)],
        "held_out_classes": held,
        "far": ["scrambled", "noise"],
        "network": os.environ.get("UNSEEN_NETWORK", "resnet"),
        "seeds": 1,
    }
    names = [name for name in DETECTORS if name != "mc-dropout"]  # the networks have no dropout
    rows = []
    for detectors_here, condition, settings in (
        (names, None, {"steps": int(os.environ.get("UNSEEN_STEPS", "5000"))}),
        (["msp"], UNTRAINED, {"steps": 1, "learning_rate": 1e-12}),
    ):
        study = Study(shift, ["erm"], detectors=detectors_here, **options, **settings)
        with tempfile.TemporaryDirectory() as place:
            table = study.run(place, engine="serial").unfamiliar
        rows += [Row(condition or r.detector, _full_name(r.set), r.auroc) for r in table.itertuples()]
    return rows


def _full_name(name: str) -> str:
    given = {"unseen domains": "shifted digits", "scrambled": "scrambled digits", "noise": "noise"}
    return given.get(name, "held-out digits")
