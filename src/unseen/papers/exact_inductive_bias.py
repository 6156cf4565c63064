"""Exact inductive bias: does the tail of sampled losses give the right nats, and do they follow the space and task?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.measures.hypothesis_spaces import sample_gp_losses, sample_network_losses
from unseen.measures.inductive_bias import compare_spaces
from unseen.measures.rare_events import Family, fit_tail
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers

Array = NDArray[np.float64]

DIMENSIONS, SAMPLES = (1, 2, 3, 4, 6, 8), 4000
SIZES, TESTED = (50, 100, 200, 400), 60
NETWORKS, FITS = 60, 0.03
"""Networks a space, and the training loss up to which one fits: a third of that of a constant prediction."""
TARGETS = (0.06, 0.04, 0.02)
FAMILIES: dict[str, Family] = {
    "ncx2": "ncx2",
    "ncx2, moments": "ncx2-moments",
    "gamma": "gamma",
    "normal": "normal",
    "extreme values": "extreme",
    "empirical": "empirical",
}
PERMUTED = ", pixels permuted"


def _off(name: str, *dimensions: int) -> Callable[[Measured], float]:
    """Largest distance in nats of a family's number from ln 100, the true one."""
    return lambda m: max(abs(m[name, f"1 %, d = {d}"] - np.log(100)) for d in dimensions)


def _gap(m: Measured, kind: str = "") -> float:
    return m["MLP" + kind, "nats at 0.02"] - m["CNN" + kind, "nats at 0.02"]


@papers.register(
    "exact-inductive-bias",
    summary="The nats that a space of hypotheses lacks, from the tail of sampled test losses",
    paper="Boopathy et al. 2024 (IJCAI)",
)
class ExactInductiveBias(Reproduction):
    card = Card(
        number=61,
        title="Towards Exact Computation of Inductive Bias",
        authors="Boopathy et al.",
        venue="IJCAI 2024",
        arxiv="2406.15941",
        claim="The inductive bias that generalising asks of a space of hypotheses can be read from the lower tail of "
        "sampled test losses; it rises with the dimension of the inputs, and neural networks encode much more of it "
        "than Gaussian processes do.",
        here="Gaussian processes on a sine of one direction in 1 to 8 dimensions, where the 1 % quantile gives the "
        "truth, and on the digits of scikit-learn (50 to 400 training images); 60 perceptrons and 60 convolutional "
        "networks of 9,000 weights against them, also with permuted pixels. Seen before the thresholds: the fits of "
        "three seeds, digits of one, and that such convolutional networks do not beat perceptrons on 8 x 8 pixels.",
        not_here="Spaces of the size of ImageNet, control tasks, thousands of trained networks.",
        full="MNIST or CIFAR-10 of yours: UNSEEN_INDUCTIVE_BIAS, a folder with mnist.npz or cifar-10.npz, each with x "
        "(N, channels, height, width, in [0, 1]) and y. 2,000 training images, 500 networks a kind; one GPU, an hour.",
    )
    conditions = (
        Condition("ncx2", "method", "scaled non-central chi-squared, by likelihood"),
        Condition("ncx2, moments", "baseline", "the same by three moments"),
        Condition("gamma", "baseline", "by two moments"),
        Condition("normal", "baseline", "by two moments"),
        Condition("extreme values", "baseline", "moment estimator on the lowest tenth"),
        Condition("empirical", "reference", "share of the sample"),
        Condition("GP, sine", "method", "60 training points in [-1, 1]^d, lengthscale 0.7"),
        Condition("GP", "baseline", "digits, one-hot, lengthscale 1.5"),
        Condition("MLP", "method", "64-64, 100 epochs of Adam, 200 digits"),
        Condition("CNN", "method", "two convolutions, as many weights"),
        Condition("MLP" + PERMUTED, "control", "one permutation of pixels a seed"),
        Condition("CNN" + PERMUTED, "control", "the same permutation"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        **{f"1 %, d = {d}": "nats at the 1 % quantile of the losses; ln 100 is right" for d in DIMENSIONS},
        **{f"nats, d = {d}": "at a loss of 0.02" for d in DIMENSIONS},
        **{f"nats, n = {n}": "at a loss of 0.05, n training digits" for n in SIZES},
        **{f"{end}nats at {t}": f"{what}at a loss of {t}" for t in TARGETS
           for end, what in (("", ""), ("least ", "lower end of 95 %, "), ("most ", "upper end, "))},
        "loss": "mean test loss of the space",
        "kept": "share of the networks that fit the training data",
    }  # fmt: skip
    claims = (
        Claim(
            "calibrated",
            "Distance from ln 100 at the 1 % quantile: the larger of d = 6 and 8.",
            value=_off("ncx2", 6, 8),
            at_most=0.5,
        ),
        Claim(
            "calibrated, d = 4",
            "Distance from ln 100 at the 1 % quantile.",
            value=_off("ncx2", 4),
            at_most=1.0,
        ),
        Claim(
            "better than a normal fit",
            "Distance from ln 100 of a normal fit less that of ncx2: the larger of d = 6 and 8 each.",
            value=lambda m: _off("normal", 6, 8)(m) - _off("ncx2", 6, 8)(m),
            at_least=0.1,
        ),
        Claim(
            "few dimensions",
            "Distance from ln 100 at the 1 % quantile: the largest of d = 1, 2, 3, where the family is wrong.",
            value=_off("ncx2", 1, 2, 3),
        ),
        Claim(
            "rises with dimension",
            "Spearman's correlation of d with the mean nats at a loss of 0.02.",
            pooled=lambda table: float(spearmanr(DIMENSIONS, _by_dimension(table)).statistic),
            at_least=0.95,
        ),
        Claim(
            "strictly from d = 2",
            "Least increase of the mean nats from d = 2 on.",
            pooled=lambda table: float(np.diff(_by_dimension(table))[1:].min()),
            at_least=0.01,
        ),
        Claim(
            "falls with data",
            "Least decrease of the nats from 100 to 200 to 400 digits.",
            value=lambda m: min(m["GP", f"nats, n = {a}"] - m["GP", f"nats, n = {2 * a}"] for a in (100, 200)),
            at_least=1.0,
        ),
        Claim(
            "networks encode more than GPs",
            "Lower end of the GP's interval less the higher end of the networks' at a loss of 0.02.",
            value=lambda m: (
                m["GP", "least nats at 0.02"]
                - max(m[name, "most nats at 0.02"] for name in ("MLP", "CNN"))
            ),
            at_least=0.0,
        ),
        Claim(
            "CNN encodes more than MLP",
            "Nats of the MLP less those of the CNN at a loss of 0.02.",
            value=_gap,
            at_least=0.01,
        ),
        Claim(
            "it is the order of pixels",
            "Drop of that difference when pixels are permuted, as a share of its size.",
            value=lambda m: (_gap(m) - _gap(m, PERMUTED)) / max(abs(_gap(m)), 1e-9),
            at_least=0.7,
            control=True,
        ),
        Claim(
            "worth of the order of pixels to the CNN",
            "Nats of the CNN with permuted pixels less those with pixels in order, at a loss of 0.02.",
            value=lambda m: m["CNN" + PERMUTED, "nats at 0.02"] - m["CNN", "nats at 0.02"],
        ),
    )  # fmt: skip
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return ["your data"] if scale == "full" else ["sine", "digits", "networks"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "rare events|hypothesis spaces", UnseenWarning
            )  # part of the result
            parts: dict[str, Callable[[int], list[Row]]] = {
                "sine": sine_rows,
                "digits": digit_rows,
                "networks": lambda seed: network_rows(*digits(seed, 200), seed),
                "your data": own_data,
            }
            return parts[unit](seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        means = table.groupby(["condition", "metric"]).value.mean()
        for name, colour in zip(
            FAMILIES, ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"), strict=False
        ):
            _line(left, means, name, {d: f"1 %, d = {d}" for d in DIMENSIONS}, label=name, color=colour)
        left.axhline(np.log(100), color="#999999", linestyle="--", linewidth=1)
        left.set(xlabel="dimensions", ylabel="nats at the 1 % quantile (dashed: right)")
        _line(
            middle,
            means,
            "GP",
            {n: f"nats, n = {n}" for n in SIZES},
            label="digits, loss 0.05",
            color="#0072b2",
        )
        middle.set(xlabel="training digits", ylabel="nats that a Gaussian process lacks")
        middle.set_xticks(SIZES)
        names = ("GP", "MLP", "CNN", "MLP" + PERMUTED, "CNN" + PERMUTED)
        for name, colour in zip(names, ("#000000", "#d55e00", "#0072b2", "#e69f00", "#56b4e9"), strict=True):
            _line(right, means, name, {t: f"nats at {t}" for t in TARGETS}, label=name, color=colour)
        right.set(xlabel="test loss to be reached", ylabel="nats", yscale="symlog", ylim=(0, None))
        right.invert_xaxis()
        for axes in (left, middle, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
        return figure


def _line(axes: Any, means: Any, name: str, metrics: Mapping[float, str], **style: Any) -> None:
    there = {place: means[name, metric] for place, metric in metrics.items() if (name, metric) in means.index}
    axes.plot(list(there), list(there.values()), "o-", **style)


def _by_dimension(table: pd.DataFrame) -> list[float]:
    own = table[table.condition == "GP, sine"].groupby("metric").value.mean()
    return [float(own[f"nats, d = {d}"]) for d in DIMENSIONS]


def sine_rows(seed: int, dimensions: Iterable[int] = DIMENSIONS, samples: int = SAMPLES) -> list[Row]:
    """Every family at the 1 % quantile, where the truth is ln 100, and ncx2 at a loss of 0.02."""
    rows = []
    for d in dimensions:
        random = np.random.default_rng((seed, d))
        x, w = random.uniform(-1, 1, (100, d)), random.normal(size=d)
        y = np.sin(3 * x @ w / np.sqrt(d))
        losses = sample_gp_losses(
            x[:60], y[:60], x[60:], y[60:], lengthscale=0.7, n_samples=samples, seed=seed
        )
        places = np.array([np.quantile(losses, 0.01), 0.02])
        nats = {name: -fit_tail(losses, family).log_cdf(places) for name, family in FAMILIES.items()}
        rows += [Row(name, f"1 %, d = {d}", float(found[0])) for name, found in nats.items()]
        rows.append(Row("GP, sine", f"nats, d = {d}", float(nats["ncx2"][1])))
    return rows


def digit_rows(seed: int, sizes: Iterable[int] = SIZES) -> list[Row]:
    """What a Gaussian process lacks, by the number of training digits; the test digits stay."""
    rows = []
    for n in sizes:
        train, test = digits(seed, n)
        tail = fit_tail(sample_gp_losses(*train, *test, lengthscale=1.5, n_samples=SAMPLES, seed=seed))
        rows.append(Row("GP", f"nats, n = {n}", float(-tail.log_cdf(np.array([0.05]))[0])))
    return rows


Examples = tuple[Array, Array]


def digits(seed: int, train: int) -> tuple[Examples, Examples]:
    """(n, 1, 8, 8) images in [0, 1] and one-hot targets: `train` of them, and 60 others, the same for any number."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x / 16).reshape(-1, 1, 8, 8)[order], np.eye(10)[y[order]]
    return (x[TESTED : TESTED + train], y[TESTED : TESTED + train]), (x[:TESTED], y[:TESTED])


def network_rows(
    train: Examples,
    test: Examples,
    seed: int,
    *,
    networks: int = NETWORKS,
    epochs: int = 100,
    device: str = "cpu",
    **gp: Any,
) -> list[Row]:
    """Networks, also on permuted pixels, and a Gaussian process (options in `gp`) on the same data."""
    shape = train[0].shape[1:]
    order = np.random.default_rng((seed, 1)).permutation(int(np.prod(shape)))
    gp = {"lengthscale": 1.5, "n_samples": SAMPLES, **gp}
    spaces, rows = {"GP": sample_gp_losses(*train, *test, seed=seed, **gp)}, []
    for kind, build in (("MLP", perceptron), ("CNN", convolutional)):
        for ending in ("", PERMUTED):
            sets = [
                (x.reshape(len(x), -1)[:, order].reshape(x.shape) if ending else x, y)
                for x, y in (train, test)
            ]
            tensors = [
                tuple(torch.tensor(part, dtype=torch.float32, device=device) for part in s) for s in sets
            ]
            found = sample_network_losses(
                lambda build=build: build(shape), *tensors, networks, epochs=epochs,  # type: ignore[misc,arg-type]
                train_loss_at_most=FITS, seed=seed,
            )  # fmt: skip
            spaces[kind + ending] = found
            rows.append(Row(kind + ending, "kept", len(found) / networks))
    for found in compare_spaces(spaces, TARGETS, bootstrap=50, seed=seed).itertuples():
        ends = {"": found.value, "least ": found.low, "most ": found.high}
        rows += [Row(found.space, f"{end}nats at {found.target:g}", each) for end, each in ends.items()]
    return rows + [Row(name, "loss", float(losses.mean())) for name, losses in spaces.items()]


def perceptron(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(shape)), 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def convolutional(shape: tuple[int, ...]) -> nn.Module:
    """8,734 weights on 8 x 8 pixels, of which the perceptron has 8,970."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * (height // 2) * (width // 2), 28), nn.ReLU(), nn.Linear(28, 10),
    )  # fmt: skip


def own_data(seed: int, **options: Any) -> list[Row]:
    """`network_rows` of MNIST or CIFAR-10, the first of them that is there."""
    folder = Path(os.environ.get("UNSEEN_INDUCTIVE_BIAS", ""))
    there = [folder / name for name in ("mnist.npz", "cifar-10.npz") if (folder / name).is_file()]
    if "UNSEEN_INDUCTIVE_BIAS" not in os.environ or not there:
        raise InputError(
            "UNSEEN_INDUCTIVE_BIAS", "names no folder with mnist.npz or cifar-10.npz", "See the card."
        )
    with np.load(there[0], allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    order = np.random.default_rng(seed).permutation(len(x))[:3000]
    x, y = x[order].astype(np.float64), np.eye(10)[y[order]]
    cut = len(x) * 2 // 3
    scale = float(np.sqrt(x[0].size)) / 5  # distances grow with the number of pixels: 1.6 for 8 x 8
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"networks": 500, "device": device, "lengthscale": scale, **options}
    return network_rows((x[:cut], y[:cut]), (x[cut:], y[cut:]), seed, **options)
