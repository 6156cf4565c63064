"""Universal prediction: how much prior weight lies near the truth, and what regret a Bayesian mixture then has.

Hypotheses are samples of a prior, or a finite class; the mixture is exact for that discrete class alone. KL divergences
are in nats per symbol, averaged over inputs. An almost uniform prior over weights is far from uniform over functions:
that is what makes simple functions heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.measures.arrays import as_numbers, same_length
from unseen.measures.multilevel_splitting import multilevel_splitting
from unseen.measures.sharpness import parameters_restored

Array = NDArray[np.float64]

LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class HypothesisWeight:
    """ln W_eps, the prior mass of hypotheses within eps of the truth.

    log_weight  in nats, at most 0; -inf if no sample is as near
    ci          95 %; without samples near enough only its upper end says something
    censored    whether no sample is as near: all that is known is the upper end (plain sampling stops at -ln M)
    """

    log_weight: float
    ci: tuple[float, float]
    censored: bool


@dataclass(frozen=True)
class RegretBound:
    """min over eps of eps + ln(1 / W_eps) / n, in nats per symbol, the eps that is best, and ln W there."""

    bound: float
    eps: float
    log_weight: float


def kl_to_truth(truth: Any, probabilities: Any) -> Array:
    """(M,) mean over inputs of D(P_0 || P_theta) in nats.

    truth          (I, C), rows that sum to one; with a floor of noise if it is deterministic, lest all be far
    probabilities  (M, I, C) of the hypotheses; clipped at 1e-6, which leaves good ones as they are
    Raises InputError where a hypothesis gives probability 0 to what the truth does not.
    """
    p, q = as_numbers("truth", truth, 2), as_numbers("probabilities", probabilities, 3)
    if q.shape[1:] != p.shape:
        raise InputError(
            "probabilities", f"have shape {q.shape}, truth {p.shape}", "Give (M, I, C) and (I, C)."
        )
    for name, values in (("truth", p), ("probabilities", q)):
        if values.min() < 0 or np.abs(values.sum(-1) - 1).max() > 1e-3:
            raise InputError(name, "has rows that are not probabilities", "Apply softmax to logits first.")
    if ((q == 0) & (p > 0)).any():
        raise InputError(
            "probabilities",
            "are 0 where the truth is not: the divergence is infinite",
            "Clip or temper them.",
        )
    return special.rel_entr(p, np.clip(q, LEAST_PROBABILITY, None)).sum(-1).mean(-1)


def hypothesis_weight(kl: Any, eps: float, log_prior: Any = None) -> HypothesisWeight:
    """Prior mass of the hypotheses with KL <= eps (Feder, Urbanke & Fogel 2025, arXiv 2506.07661).

    kl         (M,) divergences of the truth from samples of the prior, in nats per symbol
    log_prior  (M,) ln of the prior of a finite class, summing to one: then the weight is exact. None: samples, with
               an exact (binomial) interval
    """
    values = _divergences(kl)
    if not eps > 0:
        raise InputError("eps", f"is {eps}", "Give a positive divergence.")
    near = values <= eps
    if log_prior is not None:
        exact = float(special.logsumexp(np.append(_prior(log_prior, len(values))[near], -np.inf)))
        return HypothesisWeight(min(exact, 0.0), (min(exact, 0.0),) * 2, not near.any())
    share = stats.binomtest(int(near.sum()), len(values)).proportion_ci(method="exact")
    with np.errstate(divide="ignore"):
        low, high, found = (float(np.log(each)) for each in (share.low, share.high, near.mean()))
    return HypothesisWeight(found, (low, high), not near.any())


def rare_hypothesis_weight(
    kl: Callable[[Tensor], Tensor], prior_std: Tensor, eps: float, **options: Any
) -> HypothesisWeight:
    """The same, however small, by multilevel splitting.

    kl         parameters (M, D) -> divergences (M,), in nats per symbol
    prior_std  (D,) of the Gaussian prior; `options` are those of `multilevel_splitting`
    """
    if not eps > 0:
        raise InputError("eps", f"is {eps}", "Give a positive divergence.")
    found = multilevel_splitting(kl, prior_std, eps, **options)
    return HypothesisWeight(found.log_probability, found.ci, found.extrapolated)


def universal_regret_bound(
    kl: Any, n: int, eps_grid: Sequence[float] | None = None, log_prior: Any = None
) -> RegretBound:
    """Bound of the mixture's regret per symbol, online over n symbols (and so of the mean over training sizes below n).

    kl         (M,) divergences of the truth from the hypotheses, each of prior 1 / M or exp(log_prior)
    eps_grid   None: all that can be best, the divergences themselves
    Restricting the mixture to the ball and Jensen's inequality give it: R <= min_eps eps + ln(1 / W_eps) / n.
    """
    values = _divergences(kl)
    if n < 1:
        raise InputError("n", f"is {n}", "Give the number of symbols, 1 at least.")
    prior = (
        np.full(len(values), -math.log(len(values))) if log_prior is None else _prior(log_prior, len(values))
    )
    order = np.argsort(values)
    ascending, weights = values[order], np.logaddexp.accumulate(prior[order])
    if eps_grid is None:
        radii, logs = ascending, weights
    else:
        radii = as_numbers("eps_grid", eps_grid)
        reached = np.searchsorted(ascending, radii, side="right")
        logs = np.append(-np.inf, weights)[reached]
    bounds = radii - np.minimum(logs, 0.0) / n
    best = int(np.argmin(bounds))
    return RegretBound(float(bounds[best]), float(radii[best]), float(min(logs[best], 0.0)))


def mixture_predict(log_likelihoods: Any, member_probs: Any, log_prior: Any = None) -> Array:
    """(..., C) predictions of the Bayesian mixture of a finite class: probabilities are averaged, not logits.

    log_likelihoods  (M,) ln P_theta(data), summed over the data; -inf rules a member out
    member_probs     (M, ..., C) each member's probabilities
    log_prior        (M,), summing to one; None: uniform
    """
    likelihoods = as_numbers("log_likelihoods", log_likelihoods)
    members = as_numbers("member_probs", member_probs, np.ndim(member_probs))
    same_length("member_probs", members, "the likelihoods", len(likelihoods))
    prior = 0.0 if log_prior is None else _prior(log_prior, len(likelihoods))
    if members.ndim < 2 or members.min() < 0 or np.abs(members.sum(-1) - 1).max() > 1e-2:
        raise InputError(
            "member_probs", "has rows that are not probabilities", "Apply softmax to logits first."
        )
    posterior = likelihoods + prior
    if not posterior.max() > -math.inf:
        raise InputError(
            "log_likelihoods", "rule every member out", "Clip probabilities, or enlarge the class."
        )
    return np.tensordot(special.softmax(posterior), members, 1)


@dataclass(frozen=True)
class FlatnessWeight:
    """ln of the share of a ball around the parameters in which the loss stays low; at most 0, 0 for a flat loss.

    ci         95 %, bootstrap over directions
    distances  (K,) how far each direction goes, at most the radius
    effective  directions that the mean rests on, in [1, K]: near 1, the widest one decides alone
    """

    log_share: float
    ci: tuple[float, float]
    distances: Array
    effective: float


def flatness_weight(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    radius: float,
    tolerance: float = 0.1,
    *,
    directions: int = 50,
    steps: int = 12,
    seed: int = 0,
) -> FlatnessWeight:
    """Local weight of a minimum: ln of the mean over random directions of (distance / radius)^D.

    loss       model -> scalar, in evaluation mode, the same at every call
    tolerance  rise of the loss above that of the parameters up to which a place counts, above 0
    steps      bisections of the first place (of eight up to the radius) that is too high; exact for a star-shaped basin
    A flat minimum has a large one. Source: Huang et al. 2020, arXiv 1906.03291 (Monte-Carlo volume of a basin).
    """
    if not radius > 0 or not tolerance > 0 or directions < 2 or steps < 1:
        raise InputError("radius, tolerance, directions or steps", "are too small", "Raise them.")
    generator = torch.Generator().manual_seed(seed)
    with parameters_restored(model) as parameters, torch.no_grad():
        start = [p.detach().clone() for p in parameters]
        ceiling = float(loss(model)) + tolerance

        def low(direction: list[Tensor], distance: float) -> bool:
            for p, here, way in zip(parameters, start, direction, strict=True):
                p.copy_(here + distance * way)
            return float(loss(model)) <= ceiling

        reached = [_reach(low, _direction(start, generator), radius, steps) for _ in range(directions)]
    found = np.array(reached)
    logs = sum(p.numel() for p in start) * np.log(found / radius)
    random = np.random.default_rng(seed)
    draws = special.logsumexp(random.choice(logs, (200, directions)), axis=1) - math.log(directions)
    total = special.logsumexp(logs)
    ends = np.quantile(draws, [0.025, 0.975])
    return FlatnessWeight(
        float(total - math.log(directions)), (float(ends[0]), float(ends[1])), found,
        float(np.exp(2 * total - special.logsumexp(2 * logs))),
    )  # fmt: skip


def _direction(like: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    drawn = [torch.randn(p.shape, generator=generator).to(p) for p in like]
    length = torch.sqrt(sum((way.square().sum() for way in drawn), torch.zeros(())))
    return [way / length for way in drawn]


def _reach(
    low: Callable[[list[Tensor], float], bool], direction: list[Tensor], radius: float, steps: int
) -> float:
    inner, outer = 0.0, radius
    for place in np.linspace(0, radius, 9)[1:]:
        if not low(direction, float(place)):
            outer = float(place)
            break
        inner = float(place)
    else:
        return radius
    for _ in range(steps):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if low(direction, middle) else (inner, middle)
    return max(inner, radius * 1e-9)


def _divergences(kl: Any) -> Array:
    values = as_numbers("kl", kl)
    if values.min() < 0:
        raise InputError(
            "kl", f"has negative values, the least {values.min():g}", "A divergence is at least 0."
        )
    if not np.isfinite(values).any():
        raise InputError("kl", "is infinite for every hypothesis", "Clip their probabilities, say at 1e-6.")
    return values


def _prior(log_prior: Any, count: int) -> Array:
    values = as_numbers("log_prior", log_prior)
    same_length("log_prior", values, "the class", count)
    total = float(special.logsumexp(values))
    if abs(total) > 1e-6:
        raise InputError("log_prior", f"sums to exp({total:.3g}), not one", "Subtract its logsumexp.")
    return values
