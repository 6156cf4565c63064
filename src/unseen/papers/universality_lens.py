"""The universality lens: does prior weight near the truth, not the number of weights, decide a mixture's regret?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import special
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unseen.errors import InputError
from unseen.measures.calibration import fit_temperature
from unseen.measures.universality import kl_to_truth, rare_hypothesis_weight, universal_regret_bound
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.training.sgld import SGLDEnsemble, prior_deviations
from unseen.training.system import seeded

Array = NDArray[np.float64]

BITS, HYPOTHESES, NOISE, EPS = 6, 15_000, 0.05, 0.2
NARROW, WIDE = 8, 64
LENGTHS, DRAWS = (16, 64, 256), 20
WIDTHS, IMAGES = (32, 128, 512), 200
SHARPNESS = 16.0
"""Factor of the digit networks' logits: with a prior of 1 / fan-in alone no hypothesis is confident."""


def _truths(seed: int) -> dict[str, Array]:
    """Name -> (64,) label of every input, before noise."""
    x = inputs()
    return {
        "constant": np.ones(len(x)),
        "one bit": x[:, 0],
        "AND": x[:, 0] * x[:, 1],
        "majority of 3": (x[:, :3].sum(1) >= 2).astype(float),
        "XOR of 2": x[:, :2].sum(1) % 2,
        "parity of 3": x[:, :3].sum(1) % 2,
        "full parity": x.sum(1) % 2,
        "random table": np.random.default_rng((seed, 9)).integers(0, 2, len(x)).astype(float),
    }


NAMES = (
    "constant",
    "one bit",
    "AND",
    "majority of 3",
    "XOR of 2",
    "parity of 3",
    "full parity",
    "random table",
)


def _correlation(table: pd.DataFrame, predictor: str) -> float:
    """Spearman's over truths, of means over seeds, with the regret at 64 labels (narrow networks)."""
    means = table.groupby(["condition", "metric"]).value.mean()
    regrets = [means[name, f"regret at 64, width {NARROW}"] for name in NAMES]
    return float(spearmanr([means[name, predictor] for name in NAMES], regrets).statistic)


def _saved(m: Measured, other: str) -> float:
    """Least share of the other's log loss that SGLD saves."""
    return min(1 - m[f"SGLD, width {w}", "log loss"] / m[f"{other}, width {w}", "log loss"] for w in WIDTHS)


@papers.register(
    "universality-lens",
    summary="Prior weight near the truth, not the number of weights, bounds the regret of a mixture of networks",
    paper="Feder, Urbanke & Fogel 2025",
)
class UniversalityLens(Reproduction):
    card = Card(
        number=46,
        title="The Universality Lens: Why Even Highly Over-Parametrized Models Learn Well",
        authors="Feder, Urbanke & Fogel",
        venue="arXiv 2025",
        arxiv="2506.07661",
        claim="The regret of a Bayesian mixture over a huge class is governed by the prior weight of hypotheses close "
        "to the truth, not by the size of the class; noisy SGD samples such a mixture.",
        here="All 64 inputs of 6 bits, eight truths with 5 % label noise, 15,000 random ReLU networks a width (137 and "
        "4,673 weights): regret, bound and weights of 0.2 nats by multilevel splitting. Digits, 200 images: SGLD "
        "mixtures of 40 samples against MAP, temperature and ensembles of 10, three widths. Seen before the "
        "thresholds: the truths with another seed; other digits' log losses at two widths, for the step size and the "
        "prior: at three priors SGLD beat neither a network without a prior nor, when narrow, always the MAP. The "
        "chains have not converged (R-hat 1.2 to 1.7, 9 to 17 effective samples): the digits test SGLD as it runs, "
        "not the exact mixture.",
        not_here="Transformers and language; cyclical SGLD on CIFAR-10 at its full length.",
        full="Digits' part on CIFAR-10 of yours: UNSEEN_UNIVERSALITY, a folder with cifar-10.npz, with x (pixels in "
        "[0, 1]) and y: 5,000 images, widths 128 to 2,048, on a GPU if there is one; an hour.",
    )
    conditions = (
        *(Condition(name, "method", "a truth on 6 bits, 5 % label noise") for name in NAMES),
        Condition("padded", "control", "as many hypotheses again, all of them useless"),
        *(Condition(f"SGLD, width {w}", "method", "4 chains of 10 samples") for w in WIDTHS),
        *(Condition(f"MAP, width {w}", "baseline", "Adam on the same posterior") for w in WIDTHS),
        *(Condition(f"one network, width {w}", "baseline", "Adam without a prior") for w in WIDTHS),
        *(Condition(f"tempered network, width {w}", "baseline", "with 100 other digits") for w in WIDTHS),
        *(Condition(f"deep ensemble, width {w}", "reference", "10 such networks") for w in WIDTHS),
        Condition("distilled", "method", "student of the mixture's probabilities, width 128"),
        Condition("from labels", "baseline", "the same student on labels"),
    )  # fmt: skip
    metrics: ClassVar[Mapping[str, str]] = {
        **{f"{what} at {n}, width {w}": note for w in (NARROW, WIDE) for n in LENGTHS for what, note in (
            ("regret", f"nats a label, mean of {DRAWS} draws"), ("bound", "nats a label"),
            ("excess", "regret less 3 standard errors less bound"))},
        "-ln W": f"of {EPS} nats, width {NARROW}, by splitting; 83 or more where it is not reached",
        "least divergence": "of the best of 15,000 hypotheses, nats",
        "added": "regret that padding adds at 64 labels, times 64, in nats: the largest of all truths",
        "log loss": "on 1,000 test digits, nats",
        "R-hat": "largest of the predictions on 20 digits",
        "effective samples": "least, of the same",
        "distance": "of test log loss from that of the mixture",
    }  # fmt: skip
    claims = (
        Claim(
            "bound",
            "Largest regret less 3 standard errors less bound, over truths, lengths and widths.",
            value=lambda m: max(value for (_, metric), value in m.items() if metric.startswith("excess")),
            at_most=0.0,
        ),
        Claim(
            "weight predicts regret",
            "Spearman's correlation over truths of -ln W with the regret at 64 labels.",
            pooled=lambda table: _correlation(table, "-ln W"),
            at_least=0.8,
        ),
        Claim(
            "best in class",
            "The same correlation of the least divergence.",
            pooled=lambda table: _correlation(table, "least divergence"),
        ),
        Claim(
            "more weights do not matter",
            "Largest relative change of a truth's regret at 64 labels from 137 to 4,673 weights.",
            value=lambda m: max(
                abs(m[name, f"regret at 64, width {WIDE}"] / m[name, f"regret at 64, width {NARROW}"] - 1)
                for name in NAMES
            ),
            at_most=0.4,
        ),
        Claim(
            "padding",
            "Regret that useless hypotheses add, in nats for all labels.",
            value=lambda m: m["padded", "added"],
            at_most=math.log(2) + 1e-9,
            control=True,
        ),
        Claim(
            "better than the MAP",
            "Share of the MAP's log loss that SGLD saves: the least of three widths.",
            value=lambda m: _saved(m, "MAP"),
            at_least=0.05,
        ),
        Claim(
            "better than one network",
            "Share of a network's log loss that SGLD saves, trained without a prior: the least of three widths.",
            value=lambda m: _saved(m, "one network"),
            at_least=0.05,
        ),
        Claim(
            "not worse than an ensemble",
            "SGLD's log loss over that of a deep ensemble: the largest of three widths.",
            value=lambda m: 1 - _saved(m, "deep ensemble"),
            at_most=1.1,
        ),
        Claim(
            "better than a temperature",
            "Share of a tempered network's log loss that SGLD saves: the least of three widths.",
            value=lambda m: _saved(m, "tempered network"),
        ),
        Claim(
            "wider is no worse",
            "Largest rise of SGLD's log loss from a width to the next.",
            value=lambda m: max(
                m[f"SGLD, width {b}", "log loss"] - m[f"SGLD, width {a}", "log loss"]
                for a, b in pairwise(WIDTHS)
            ),
            at_most=0.02,
        ),
        Claim(
            "distillation",
            "Distance from the mixture's log loss: of the student on labels less that of the distilled one.",
            value=lambda m: m["from labels", "distance"] - m["distilled", "distance"],
            at_least=0.0,
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return ["your data"] if scale == "full" else ["truths", "digits"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        parts = {
            "truths": truth_rows,
            "digits": lambda seed: digit_rows(*digits(seed), seed),
            "your data": own_data,
        }
        return parts[unit](seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        means = table.groupby(["condition", "metric"]).value.mean()
        for width, marker in ((NARROW, "o"), (WIDE, "x")):
            there = [name for name in NAMES if (name, f"regret at 64, width {width}") in means.index]
            left.plot(
                [means[name, "-ln W"] for name in there],
                [means[name, f"regret at 64, width {width}"] for name in there],
                marker, label=f"width {width}",
            )  # fmt: skip
            for name in there if width == NARROW else ():
                left.annotate(
                    name, (means[name, "-ln W"], means[name, f"regret at 64, width {width}"]), fontsize=7
                )
        left.set(xlabel=f"-ln prior weight within {EPS} nats", ylabel="regret at 64 labels, nats a label")
        colours = {"SGLD": "#0072b2", "MAP": "#d55e00", "one network": "#cc79a7", "tempered network": "#e69f00",
                   "deep ensemble": "#000000"}  # fmt: skip
        for name, colour in colours.items():
            losses = {w: means.get((f"{name}, width {w}", "log loss"), math.nan) for w in WIDTHS}
            right.plot(list(losses.values()), "o-", color=colour, label=name)
        right.set_xticks(range(len(WIDTHS)), WIDTHS)
        right.set(xlabel="hidden units", ylabel="test log loss on digits, nats")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
        return figure


# ---- truths on six bits ----


def inputs() -> Array:
    """(64, 6) all vectors of 6 bits."""
    return ((np.arange(2**BITS)[:, None] >> np.arange(BITS)) & 1).astype(float)


class Hypotheses:
    """Random ReLU networks with two hidden layers on all inputs, from flat parameters (M, D) ~ N(0, 1 / fan-in)."""

    def __init__(self, width: int):
        sizes = (BITS, width, width, 1)
        self.layers = [(a, b) for a, b in pairwise(sizes)]
        self.prior_std = torch.cat([torch.full(((a + 1) * b,), a**-0.5) for a, b in self.layers])
        self.x = torch.tensor(2 * inputs() - 1, dtype=torch.float32)

    def probabilities(self, theta: Tensor) -> Array:
        """(M, 64, 2): sigmoid(4 f), clipped at 1e-6."""
        hidden: Tensor = self.x.expand(len(theta), -1, -1)
        for index, part in enumerate(theta.split([(a + 1) * b for a, b in self.layers], 1)):
            a, b = self.layers[index]
            weight, bias = part[:, : a * b].unflatten(1, (a, b)), part[:, a * b :]
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden if index == 0 else hidden.relu(), weight)
        one = torch.sigmoid(4 * hidden[..., 0].double()).clamp(1e-6, 1 - 1e-6).numpy()
        return np.stack([1 - one, one], -1)

    def drawn(self, count: int, generator: torch.Generator, at_a_time: int = 1000) -> Array:
        sizes = [min(at_a_time, count - start) for start in range(0, count, at_a_time)]
        parts = [
            torch.randn(size, len(self.prior_std), generator=generator) * self.prior_std for size in sizes
        ]
        return np.concatenate([self.probabilities(part) for part in parts])


def truth_rows(seed: int, hypotheses: int = HYPOTHESES, **splitting: Any) -> list[Row]:
    rows, added = [], []
    for width in (NARROW, WIDE):
        space = Hypotheses(width)
        members = space.drawn(hypotheses, torch.Generator().manual_seed(seed))
        for index, (name, labels) in enumerate(_truths(seed).items()):
            truth = _noisy(labels)
            divergences = kl_to_truth(truth, members)
            random = np.random.default_rng((seed, index))
            for n in LENGTHS:
                counts = sequences(truth, n, random)
                each = regrets(truth, members, counts) / n
                bound = universal_regret_bound(divergences, n).bound
                error = each.std(ddof=1) / math.sqrt(len(each))
                rows += [
                    Row(name, f"regret at {n}, width {width}", float(each.mean())),
                    Row(name, f"bound at {n}, width {width}", bound),
                    Row(name, f"excess at {n}, width {width}", float(each.mean() - 3 * error - bound)),
                ]
                if n == 64 and width == NARROW:
                    useless = np.concatenate([members, _flipped(members, truth)])
                    added.append(float((regrets(truth, useless, counts) - each * n).max()))
            if width == NARROW:
                weight = rare_hypothesis_weight(
                    partial(divergence, space, truth),
                    space.prior_std, EPS, **{"states": 200, "runs": 2, "max_levels": 60, "seed": seed, **splitting},
                )  # fmt: skip
                # not reached in 60 levels of a quarter: rarer than that
                lost = weight.log_weight == -math.inf
                rows.append(Row(name, "-ln W", 60 * math.log(4) if lost else -weight.log_weight))
                rows.append(Row(name, "least divergence", float(divergences.min())))
    return [*rows, Row("padded", "added", max(added))]


def divergence(space: Hypotheses, truth: Array, theta: Tensor) -> Tensor:
    """(M,) of the truth from hypotheses with parameters (M, D)."""
    return torch.from_numpy(kl_to_truth(truth, space.probabilities(theta)))


def sequences(truth: Array, n: int, random: np.random.Generator) -> Array:
    """(DRAWS, 64, 2) how often each input and label occur among n noisy labels of random inputs."""
    joint = (truth / len(truth)).ravel()
    return random.multinomial(n, joint, size=DRAWS).reshape(DRAWS, *truth.shape).astype(np.float64)


def regrets(truth: Array, members: Array, counts: Array) -> Array:
    """(DRAWS,) ln P_0(labels) - ln Q(labels), Q the uniform mixture of the members, exact for these."""
    flat = counts.reshape(len(counts), -1)
    likelihoods = flat @ np.log(members).reshape(len(members), -1).T
    mixture = special.logsumexp(likelihoods, axis=1) - math.log(len(members))
    return flat @ np.log(truth).ravel() - mixture


def _noisy(labels: Array) -> Array:
    one = np.where(labels > 0, 1 - NOISE, NOISE)
    return np.stack([1 - one, one], -1)


def _flipped(members: Array, truth: Array) -> Array:
    """As many hypotheses that all say the opposite of the truth, in as many degrees as the members are sure."""
    sure = members.max(-1)
    right = truth.argmax(-1)
    one = np.where(right == 1, 1 - sure, sure)
    return np.stack([1 - one, one], -1)


# ---- digits ----

Examples = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Examples, Examples, Examples]:
    """200 to learn from, 100 to set a temperature on, 1,000 to test on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    images, labels = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
    ends = (0, IMAGES, IMAGES + 100, IMAGES + 1100)
    first, second, third = ((images[a:b], labels[a:b]) for a, b in pairwise(ends))
    return first, second, third


class Scaled(nn.Module):
    """Logits times a constant: a wider prior of functions from the same prior of weights."""

    def forward(self, x: Tensor) -> Tensor:
        return SHARPNESS * x


def perceptron(features: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 10), Scaled())


def digit_rows(
    train: Examples,
    held: Examples,
    test: Examples,
    seed: int,
    widths: tuple[int, ...] = WIDTHS,
    *,
    burn_in: int = 1500,
    thin: int = 50,
    steps: int = 400,
    learning_rate: float = 1e-4,
) -> list[Row]:
    rows: list[Row] = []
    for width in widths:

        def build(width: int = width) -> nn.Module:
            return perceptron(train[0].shape[1], width)

        sampler = SGLDEnsemble(build, "fan-in", learning_rate, burn_in, thin, 4, batch_size=50, seed=seed)
        mixture = sampler.fit(*train).predict_proba(test[0])
        quality = sampler.diagnose(test[0][:20])
        targets = nn.functional.one_hot(train[1], 10).float()
        mode = trained(build, train[0], targets, 1, seed, steps, prior=True)
        networks = trained(build, train[0], targets, 10, seed, steps)
        on_test = networks(test[0])
        temperature = fit_temperature(networks(held[0])[0], held[1])
        predictions = {
            "SGLD": mixture,
            "MAP": special.softmax(mode(test[0])[0], -1),
            "one network": special.softmax(on_test[0], -1),
            "tempered network": special.softmax(on_test[0] / temperature, -1),
            "deep ensemble": special.softmax(on_test, -1).mean(0),
        }
        losses = {name: log_loss(found, test[1]) for name, found in predictions.items()}
        rows += [Row(f"{name}, width {width}", "log loss", loss) for name, loss in losses.items()]
        rows += [
            Row(f"SGLD, width {width}", "R-hat", quality.r_hat),
            Row(f"SGLD, width {width}", "effective samples", quality.effective_samples),
        ]
        if width == widths[len(widths) // 2]:
            soft = torch.tensor(sampler.predict_proba(train[0]), dtype=torch.float32, device=train[0].device)
            student = trained(build, train[0], soft, 1, seed + 1000, steps)(test[0])[0]
            plain = trained(build, train[0], targets, 1, seed + 1000, steps)(test[0])[0]
            for name, logits in (("distilled", student), ("from labels", plain)):
                loss = log_loss(special.softmax(logits, -1), test[1])
                rows += [Row(name, "log loss", loss), Row(name, "distance", abs(loss - losses["SGLD"]))]
    return rows


def trained(
    build: Callable[[], nn.Module],
    x: Tensor,
    targets: Tensor,
    count: int,
    seed: int,
    steps: int,
    *,
    prior: bool = False,
) -> Callable[[Tensor], Array]:
    """`count` networks trained by Adam in batches of 50, with the prior or without: inputs -> logits (count, N, C)."""
    models = []
    for index in range(count):
        with seeded(seed, index):
            models.append(build().to(x.device))
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    deviations = prior_deviations(models[0], "fan-in")
    optimizer = torch.optim.Adam(parameters.values(), 3e-3)
    generator = torch.Generator().manual_seed(seed)

    def logits(own: Any, fixed: Any, inputs: Tensor) -> Tensor:
        return functional_call(models[0], (own, fixed), (inputs,))

    for _ in range(steps):
        rows = torch.rand(count, len(x), generator=generator).argsort(1)[:, :50].to(x.device)
        outputs = vmap(logits)(parameters, buffers, x[rows])
        loss = -(targets[rows] * torch.log_softmax(outputs, -1)).sum(-1).mean(1).sum()
        if prior:
            weights = [(value / deviations[name]).square().sum() / 2 for name, value in parameters.items()]
            loss = loss + torch.stack(weights).sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        state = {name: value.detach() for name, value in parameters.items()}
    return lambda inputs: vmap(logits, (0, 0, None))(state, buffers, inputs).double().cpu().numpy()


def log_loss(probabilities: Array, labels: Tensor) -> float:
    chosen = probabilities[np.arange(len(labels)), labels.cpu().numpy()]
    return float(-np.log(np.clip(chosen, 1e-12, None)).mean())


def own_data(seed: int, **options: Any) -> list[Row]:
    """`digit_rows` on CIFAR-10, with widths of its size."""
    path = Path(os.environ.get("UNSEEN_UNIVERSALITY", "")) / "cifar-10.npz"
    if "UNSEEN_UNIVERSALITY" not in os.environ or not path.is_file():
        raise InputError("UNSEEN_UNIVERSALITY", "names no folder with cifar-10.npz", "Set it, see the card.")
    with np.load(path, allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    order = np.random.default_rng(seed).permutation(len(x))
    images = torch.tensor(x[order].reshape(len(x), -1), dtype=torch.float32, device=device)
    labels = torch.tensor(y[order], dtype=torch.int64, device=device)
    cut = min(5000, len(x) // 2), min(6000, len(x) * 3 // 4)
    parts = [slice(0, cut[0]), slice(*cut), slice(cut[1], cut[1] + 10_000)]
    options = {"widths": (128, 512, 2048), "burn_in": 20_000, "thin": 500, "steps": 20_000, "learning_rate": 4e-6,
               **options}  # fmt: skip
    first, second, third = ((images[part], labels[part]) for part in parts)
    return digit_rows(first, second, third, seed, **options)
