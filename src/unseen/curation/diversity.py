"""Numbers for the diversity of a training set, and the study of whether they foretell generalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from unseen.curation.base import Pool, per_example
from unseen.curation.spaces import Space, points
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import vendi_score
from unseen.networks.example_gradients import cross_entropy
from unseen.networks.gradient_methods import ExampleLoss


@dataclass(frozen=True)
class Metric:
    """A number of a set in two parts, so that numbers of its subsets are cheap.

    of_examples  pool of N examples -> (N, ...)
    of_set       what that gives for the examples of a set -> number
    """

    of_examples: Callable[[Pool], Tensor]
    of_set: Callable[[Tensor], float]

    def __call__(self, pool: Pool) -> float:
        return self.of_set(self.of_examples(pool))


def vendi(space: Space, model: nn.Module | None = None, **options: Any) -> Metric:
    """Vendi score of inputs, features or gradients (G-Vendi); options as of `unseen.curation.spaces.points`."""
    return Metric(lambda pool: points(space, model, pool, **options), vendi_score)


def mean_cosine(space: Space, model: nn.Module | None = None, **options: Any) -> Metric:
    """Mean cosine of pairs of different examples, in [-1, 1]: low for diverse sets."""

    def of_set(found: Tensor) -> float:
        rows = nn.functional.normalize(found.double(), dim=1)
        count = len(rows)
        return float((rows.sum(0).square().sum() - rows.square().sum()) / (count * (count - 1)))

    return Metric(lambda pool: points(space, model, pool, **options), of_set)


def label_entropy() -> Metric:
    """Entropy of the labels in nats, from 0 to log C."""

    def of_set(labels: Tensor) -> float:
        shares = torch.bincount(labels).double() / len(labels)
        return float(-(shares[shares > 0] * shares[shares > 0].log()).sum())

    return Metric(lambda pool: pool.y, of_set)


def perplexity(model: nn.Module, loss: ExampleLoss = cross_entropy) -> Metric:
    """exp of the mean loss under a model, from 1."""
    return Metric(lambda pool: per_example(model, pool, loss), lambda losses: math.exp(float(losses.mean())))


def distinct(n: int, vocabulary: int | None = None) -> Metric:
    """Share of different n-grams among those of the answers' tokens, (N, T) with -100 where there is none.

    vocabulary  size V: divides by the number of different ones that as many draws from V^n would give (expectation-
                adjusted distinct), so that long texts are not at a disadvantage

    Sources: Li et al. 2016, arXiv 1510.03055; adjusted: Liu et al. 2022, arXiv 2202.13587.
    """

    def of_set(tokens: Tensor) -> float:
        grams = tokens.unfold(1, n, 1)
        grams = grams[(grams != -100).all(2)]
        if len(grams) == 0:
            raise InputError("tokens", f"have no {n} in a row", "Give longer answers, or a smaller n.")
        different = len(grams.unique(dim=0))
        if vocabulary is None:
            return different / len(grams)
        kinds = float(vocabulary) ** n
        return different / (-kinds * math.expm1(len(grams) * math.log1p(-1 / kinds)))

    return Metric(lambda pool: pool.y, of_set)


def diversity_report(
    sets: Mapping[str, Pool],
    metrics: Mapping[str, Metric],
    *,
    size: int | None = None,
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """A row a set and metric: set, metric, size, value, low, high.

    size   examples that are drawn without replacement, `draws` times: value is the mean and low to high hold 95 % of
           the draws. None takes whole sets, which must then be equally large: most metrics grow with the number of
           examples; low and high are then NaN

    Raises InputError for sets of different sizes without `size`, and for a size that a set does not have.
    """
    sizes = {name: len(pool) for name, pool in sets.items()}
    if not sizes:
        raise InputError("sets", "are none", "Give one at least.")
    if size is None and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise InputError(
            "sets", f"have different sizes ({shown})", f"Give size={min(sizes.values())} or less."
        )
    if size is not None and not 2 <= size <= min(sizes.values()):
        raise InputError("size", f"is {size}", f"Give 2 to {min(sizes.values())}, the smallest set's.")
    table = []
    for name, pool in sets.items():
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(len(pool), generator=generator)[:size] for _ in range(draws if size else 1)]
        for metric, measure in metrics.items():
            found = measure.of_examples(pool)
            values = [measure.of_set(found[rows.to(found.device)]) for rows in drawn]
            low, high = np.percentile(values, [2.5, 97.5]) if size else (math.nan, math.nan)
            table.append((name, metric, size or len(pool), float(np.mean(values)), float(low), float(high)))
    return pd.DataFrame(table, columns=["set", "metric", "size", "value", "low", "high"])


class Validity(NamedTuple):
    """What a study of metrics found.

    sets          a row a training set: its metrics by name, and score
    correlations  a row a metric: metric, spearman (with the score), low, high (95 %, bootstrap over sets)
    """

    sets: pd.DataFrame
    correlations: pd.DataFrame


def metric_validity_study(
    pool: Pool,
    sampler: Callable[[Pool, torch.Generator], Any],
    trainer: Callable[[Pool], Any],
    evaluator: Callable[[Any], float],
    metrics: Mapping[str, Metric],
    *,
    sets: int = 40,
    draws: int = 1000,
    seed: int = 0,
) -> Validity:
    """Does a metric of a training set foretell how well what is trained on it does?

    sampler    (pool, generator) -> rows of a training set, all of one size: metrics grow with size
    trainer    training set -> model
    evaluator  model -> score, such as OOD accuracy

    An oracle that knows how sets were made belongs among the metrics: where it fails, the scores are noise.
    Source: the protocol of Jung et al. 2025, arXiv 2505.20161, section 3.
    """
    if sets < 4:
        raise InputError("sets", f"is {sets}", "A correlation of ranks needs four at least.")
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.as_tensor(sampler(pool, generator)) for _ in range(sets)]
    sizes = {len(rows) for rows in chosen}
    if len(sizes) > 1 or min(sizes) < 2:
        raise InputError(
            "sampler", f"gave sets of {min(sizes)} to {max(sizes)} examples", "Give one size from 2."
        )
    found = {name: metric.of_examples(pool) for name, metric in metrics.items()}
    table = pd.DataFrame([
        {
            **{name: metrics[name].of_set(values[rows.to(values.device)]) for name, values in found.items()},
            "score": evaluator(trainer(pool.take(rows))),
        }
        for rows in chosen
    ])  # fmt: skip
    resample = np.random.default_rng(seed).integers(sets, size=(draws, sets))
    correlations = []
    for name in metrics:
        pairs = table[[name, "score"]].to_numpy()
        whole, low, high = _spearman(pairs), math.nan, math.nan
        if not math.isnan(whole):
            low, high = np.nanpercentile([_spearman(pairs[rows]) for rows in resample], [2.5, 97.5])
        correlations.append((name, whole, float(low), float(high)))
    return Validity(table, pd.DataFrame(correlations, columns=["metric", "spearman", "low", "high"]))


def _spearman(pairs: np.ndarray) -> float:
    """NaN where one of both does not vary."""
    if np.ptp(pairs, axis=0).min() == 0:
        return math.nan
    return float(spearmanr(*pairs.T).statistic)
