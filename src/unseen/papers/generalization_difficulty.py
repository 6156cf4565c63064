"""Inductive bias complexity: are the published numbers right, is it exponential, and does it predict error?"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau, linregress, spearmanr

from unseen.errors import InputError, UnseenWarning
from unseen.measures.task_difficulty import Task, inductive_bias_complexity, rl_difficulty, task_difficulty
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers

PUBLISHED = {  # constants of the paper's code -> bits that they give, to three digits
    "MNIST": ((60_000, 14, 17.179, 2.3987, 10, 0.001), 1.48e16),
    "SVHN": ((73_257, 19, 53.869, 1.5767, 10, 0.01), 1.21e31),
    "CIFAR-10": ((50_000, 27, 54.916, 2.7506, 10, 0.01), 3.44e32),
    "ImageNet": ((1_280_901, 48, 943.59, 65, 1000, 0.1), 3.58e41),
}
CART_POLE = {history: bits for history, bits in enumerate((4.4e9, 3.3e17, 1.5e25, 4.7e32, 1.2e40), 1)}
EXTRA = range(9)
DIMENSIONS, CUTOFFS = range(1, 7), (2, 5, 10)
TRAIN, TEST = 500, 2000
PREDICTORS = ("bits", "dimension alone", "resolution alone", "bits of other cells")
RESAMPLES = 20


def _better_than(other: str) -> Callable[[Measured], float]:
    return lambda m: m["bits", "rank correlation"] - m[other, "rank correlation"]


@papers.register(
    "generalization-difficulty",
    summary="The bits of inductive bias that a task asks for grow exponentially with its dimension",
    paper="Boopathy et al. 2023 (ICML)",
)
class GeneralizationDifficulty(Reproduction):
    card = Card(
        number=60,
        title="Model-agnostic Measure of Generalization Difficulty",
        authors="Boopathy et al.",
        venue="ICML 2023",
        arxiv="2305.01034",
        claim="The information that a model designer must add grows exponentially with the intrinsic dimension of the "
        "inputs, polynomially with the resolution that the classes need, and orders benchmarks by difficulty.",
        here="The published numbers from their constants. Wine and the digits of scikit-learn, to which 0 to 8 "
        "irrelevant dimensions are added, resolution and radius held; also estimated anew, which is not monotone. On "
        "spheres of 1 to 6 dimensions, labels by the sign of random sums of harmonics of degree 2, 5 or 10: does the "
        "measure order the error of a support vector machine, tuned by cross-validation on 500 points?",
        not_here="Constants from raw ImageNet and Omniglot; the bits that published architectures supply.",
        full="The same on data sets of yours: UNSEEN_DIFFICULTY, a folder with mnist.npz, svhn.npz or cifar-10.npz, "
        "each with x (pixels in [0, 1]) and y. Memory of a few copies of x; minutes.",
    )
    conditions = (
        *(Condition(name, "reference", "constants of the paper's code") for name in PUBLISHED),
        Condition("cart-pole", "reference", "1 to 5 past observations"),
        Condition("wine", "method", "178 wines, 13 features, standardised; delta the least distance"),
        Condition("digits", "method", "1,797 digits of 8 x 8 pixels in [0, 1]"),
        Condition("digits, delta anew", "control", "resolution and radius estimated for each noise level"),
        Condition("four tables", "reference", "iris, wine, breast cancer, digits"),
        Condition("bits", "method", "inductive bias complexity at the known resolution"),
        Condition("dimension alone", "baseline", "m"),
        Condition("resolution alone", "baseline", "1 / delta"),
        Condition("bits of other cells", "control", "the bits in an order drawn by the seed"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "log10 bits": "decimal logarithm of the bits",
        "relative error": "of the bits, against the published ones (the largest, for cart-pole)",
        "share": "of neighbours in the published order that are in order",
        "slope": "of log10 bits over the measured dimension",
        "least slope": f"over {RESAMPLES} resamples of the nine versions",
        "r squared": "of that line",
        "degree by m": "slope of log bits over log 1 / delta, divided by m",
        "drops": "steps between noise levels at which the measure falls",
        "kendall": "Kendall's tau of log10 bits with the test error of two classifiers",
        "rank correlation": "Spearman's, with the error of the tuned SVM, over 18 tasks",
        "range": "of the SVM's error over these tasks",
    }
    claims = (
        Claim(
            "published numbers",
            "Largest relative error of the four image sets' bits.",
            value=lambda m: max(m[name, "relative error"] for name in PUBLISHED),
            at_most=0.01,
        ),
        Claim(
            "published order",
            "Share of neighbours in order: four image sets, and cart-pole with 1 to 5 observations.",
            value=lambda m: min(m["ImageNet", "share"], m["cart-pole", "share"]),
            at_least=1.0,
        ),
        Claim(
            "exponential in dimension",
            "Least R squared of log10 bits over the measured dimension, wine and digits.",
            value=lambda m: min(m["wine", "r squared"], m["digits", "r squared"]),
            at_least=0.95,
        ),
        Claim(
            "whatever is resampled",
            "Least slope of that line over resamples, wine and digits.",
            value=lambda m: min(m["wine", "least slope"], m["digits", "least slope"]),
            at_least=0.0,
        ),
        Claim(
            "polynomial in resolution",
            "Degree of that polynomial, divided by m: the farthest from 1 of wine and digits.",
            value=lambda m: max(
                (m["wine", "degree by m"], m["digits", "degree by m"]), key=lambda v: abs(v - 1)
            ),
            at_least=0.8,
            at_most=1.2,
        ),
        Claim(
            "predicts error",
            "Rank correlation of the bits with the error of the tuned SVM.",
            value=lambda m: m["bits", "rank correlation"],
            at_least=0.8,
        ),
        Claim(
            "better than dimension alone",
            "Rank correlation of the bits less that of m.",
            value=_better_than("dimension alone"),
            at_least=0.01,
        ),
        Claim(
            "better than resolution alone",
            "Rank correlation of the bits less that of 1 / delta.",
            value=_better_than("resolution alone"),
            at_least=0.01,
        ),
        Claim(
            "there is something to predict",
            "Range of the SVM's error over the tasks.",
            value=lambda m: m["bits", "range"],
            at_least=0.2,
            control=True,
        ),
        Claim(
            "not by chance",
            "Rank correlation of the bits of other cells.",
            value=lambda m: abs(m["bits of other cells", "rank correlation"]),
            at_most=0.6,
            control=True,
        ),
        Claim(
            "resolution must be held",
            "Steps between noise levels at which the measure falls when delta is estimated anew (digits).",
            value=lambda m: m["digits, delta anew", "drops"],
            at_least=1.0,
            control=True,
        ),
        Claim(
            "real tables",
            "Kendall's tau between bits and test error over four tables.",
            value=lambda m: m["four tables", "kendall"],
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return ["your data"] if scale == "full" else ["published", "added dimensions", "tables", "spheres"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "task difficulty: it is 0", UnseenWarning)  # easy spheres
            parts: dict[str, Callable[[int], list[Row]]] = {
                "published": lambda seed: published_rows(),
                "added dimensions": added_dimensions,
                "tables": table_rows,
                "spheres": sphere_rows,
                "your data": own_data,
            }
            return parts[unit](seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        values = table.groupby(["condition", "metric"]).value
        names = [*PUBLISHED] if ("MNIST", "log10 bits") in values.groups else []
        left.barh(names, [values.get_group((n, "log10 bits")).mean() for n in names], color="#0072b2")
        left.set(xlabel="log10 bits, from the published constants")
        left.invert_yaxis()
        for row, name in enumerate(PREDICTORS):
            if (name, "rank correlation") in values.groups:
                each = values.get_group((name, "rank correlation"))
                right.plot(each, [row] * len(each), "o", color="#d55e00" if row else "#0072b2", alpha=0.8)
        right.axvline(0.8, color="#999999", linestyle="--", linewidth=1)
        right.set_yticks(range(len(PREDICTORS)), PREDICTORS)
        right.invert_yaxis()
        right.set(
            xlim=(-1, 1.02), xlabel="rank correlation with an SVM's error, one dot a seed (dashed: claim)"
        )
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def published_rows() -> list[Row]:
    found = {name: inductive_bias_complexity(*constants) for name, (constants, _) in PUBLISHED.items()}
    rows = [Row(name, "log10 bits", each.log10_bits) for name, each in found.items()]
    rows += [
        Row(name, "relative error", abs(each.bits / PUBLISHED[name][1] - 1)) for name, each in found.items()
    ]
    poles = {t: rl_difficulty("pomdp", 2, history=t, n=1e4).bits for t in CART_POLE}
    return [
        *rows,
        Row("ImageNet", "share", _in_order(each.bits for each in found.values())),
        Row("cart-pole", "share", _in_order(poles.values())),
        Row("cart-pole", "relative error", max(abs(bits / CART_POLE[t] - 1) for t, bits in poles.items())),
    ]


def added_dimensions(seed: int) -> list[Row]:
    """Irrelevant Gaussian dimensions beside two tables; noise on the digits with delta estimated anew."""
    random, rows = np.random.default_rng(seed), []
    for name in ("wine", "digits"):
        x, y = tables()[name]
        clean = _known(x, y)
        spread = x.std(0).mean()
        points = []
        for extra in EXTRA:
            wider = np.concatenate([x, spread * random.normal(size=(len(x), extra))], 1)
            m = _known(wider, y, delta=clean.delta).intrinsic_dim
            points.append((m, _bits(clean, intrinsic_dim=m)))
        dimension, bits = np.array(points).T
        line = linregress(dimension, bits)
        draws = [random.integers(len(points), size=len(points)) for _ in range(RESAMPLES)]
        slopes = [linregress(dimension[d], bits[d]).slope for d in draws]
        finer = clean.delta * np.logspace(0, -2, 5)
        degree = linregress(-np.log10(finer), [_bits(clean, delta=d) for d in finer]).slope
        rows += [
            Row(name, "log10 bits", bits[0]),
            Row(name, "slope", line.slope),
            Row(name, "r squared", line.rvalue**2),
            Row(name, "least slope", min(slopes)),
            Row(name, "degree by m", degree / clean.intrinsic_dim),
        ]
    x, y = tables()["digits"]
    noisy = [x + s * random.normal(size=x.shape) for s in (0.0, 0.05, 0.1, 0.2, 0.4)]
    anew = np.array([task_difficulty(v, y, delta="min").log10_bits for v in noisy])
    return [*rows, Row("digits, delta anew", "drops", float((np.diff(anew) < 0).sum()))]


def table_rows(seed: int) -> list[Row]:
    """Bits of four tables, and test errors of a nearest neighbour and a perceptron from 100 examples."""
    from sklearn.model_selection import train_test_split
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    bits, errors = [], []
    for x, y in tables().values():
        bits.append(task_difficulty(x, y, 0.01, delta="min", seed=seed).log10_bits)
        train, test, labels, truth = train_test_split(x, y, train_size=100, stratify=y, random_state=seed)
        models = KNeighborsClassifier(1), MLPClassifier((32,), max_iter=300, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: 300 epochs are what it gets
            errors.append(np.mean([1 - model.fit(train, labels).score(test, truth) for model in models]))
    return [Row("four tables", "kendall", float(kendalltau(bits, errors).statistic))]


def sphere_rows(seed: int, dimensions: Iterable[int] = DIMENSIONS, *, train: int = TRAIN) -> list[Row]:
    """Rank correlations of what is known of a task with the error that a tuned SVM makes on it."""
    cells = [(m, degree) for m in dimensions for degree in CUTOFFS]
    errors = [sphere_error(m, degree, seed, train=train) for m, degree in cells]
    bits = [sphere_bits(m, degree, train) for m, degree in cells]
    predictors = {
        "bits": bits,
        "dimension alone": [m for m, _ in cells],
        "resolution alone": [1 / resolution(m, degree) for m, degree in cells],
        "bits of other cells": np.random.default_rng(seed).permutation(bits),
    }
    rows = [
        Row(name, "rank correlation", float(spearmanr(values, errors).statistic))
        for name, values in predictors.items()
    ]
    return [*rows, Row("bits", "range", max(errors) - min(errors))]


def resolution(m: int, degree: int) -> float:
    """delta on the unit sphere at which the measure's cutoff is this degree: M^2 = K (K + m - 1)."""
    return 2 * math.pi / math.sqrt(degree * (degree + m - 1))


def sphere_bits(m: int, degree: int, train: int) -> float:
    """log10 bits; where the data determine the function already, below those of all other tasks."""
    return inductive_bias_complexity(train, m, 1.0, resolution(m, degree), 2, 0.01).log10_bits


def sphere_error(m: int, degree: int, seed: int, *, train: int = TRAIN) -> float:
    """Test error of an RBF machine whose width and cost five-fold cross-validation chose."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    x, y = sphere_task(m, degree, seed, train + TEST)
    grid = {"gamma": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0], "C": [1.0, 10.0, 100.0]}
    machine = GridSearchCV(SVC(), grid, cv=5).fit(x[:train], y[:train])
    return float(1 - machine.score(x[train:], y[train:]))


def sphere_task(m: int, degree: int, seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points of the m-sphere, labelled by a random sum of 64 zonal harmonics of one degree, cut at its median."""
    from scipy.special import eval_chebyt, eval_gegenbauer

    random = np.random.default_rng((seed, m, degree))
    x, poles = (_on_sphere(random.normal(size=(number, m + 1))) for number in (count, 64))
    angles = x @ poles.T
    zonal = eval_chebyt(degree, angles) if m == 1 else eval_gegenbauer(degree, (m - 1) / 2, angles)
    values = zonal @ random.normal(size=64)
    return x, (values > np.median(values)).astype(np.int64)


def tables() -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Four tables of scikit-learn, without the repeated rows; measurements standardised, pixels in [0, 1]."""
    from sklearn import datasets

    found = {}
    for name in ("iris", "wine", "breast_cancer", "digits"):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        x, first = np.unique(x, axis=0, return_index=True)
        found[name] = (x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0), y[first])
    return found


def own_data(seed: int) -> list[Row]:
    """Bits from raw data, beside those that the paper publishes."""
    folder = Path(os.environ.get("UNSEEN_DIFFICULTY", ""))
    files = {name: folder / f"{name.lower()}.npz" for name in PUBLISHED}
    there = {name: path for name, path in files.items() if path.is_file()}
    if "UNSEEN_DIFFICULTY" not in os.environ or not there:
        wanted = ", ".join(path.name for path in files.values())
        raise InputError(
            "UNSEEN_DIFFICULTY", f"names no folder with any of {wanted}", "Set it, see the card."
        )
    rows = []
    for name, path in there.items():
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
        constants, bits = PUBLISHED[name]
        found = task_difficulty(x, y, constants[-1], rounded=True, seed=seed)
        rows += [
            Row(name, "log10 bits", found.log10_bits),
            Row(name, "relative error", abs(found.bits / bits - 1)),
        ]
    return rows


def _known(x: NDArray[np.float64], y: NDArray[np.int64], delta: Any = "min") -> Task:
    task = task_difficulty(x, y, 0.01, delta=delta).task
    assert task is not None  # data are always a classification task
    return task


def _bits(task: Task, **changes: float) -> float:
    return inductive_bias_complexity(**{**vars(task), **changes}, target_error=0.01).log10_bits


def _in_order(values: Iterable[float]) -> float:
    return float((np.diff(list(values)) > 0).mean())


def _on_sphere(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points / np.linalg.norm(points, axis=1, keepdims=True)
