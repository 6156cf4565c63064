"""Probabilities of rare events under a Gaussian prior, level by level (adaptive multilevel splitting)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from unseen.errors import InputError

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RareProbability:
    """ln P(score <= level).

    log_probability   mean over runs of the estimated probability, in nats; -inf if no run reached the level
    ci                95 %, from the differences between runs (normal for the logarithm)
    levels            levels that each run passed
    acceptance        least share of moves that a level accepted: well below 0.1, states hardly move and the interval
                      is too narrow
    extrapolated      whether some run ended before the level: its probability counts as zero, and the result is
                      a lower bound
    """

    log_probability: float
    ci: tuple[float, float]
    levels: tuple[int, ...]
    acceptance: float
    extrapolated: bool


def multilevel_splitting(
    score: Score,
    prior_std: Tensor | float,
    level: float,
    dimension: int | None = None,
    *,
    states: int = 500,
    keep: float = 0.25,
    moves: int = 10,
    runs: int = 4,
    max_levels: int = 100,
    seed: int = 0,
) -> RareProbability:
    """How probable a score at or below `level` is for theta ~ N(0, prior_std^2), far below 1 / samples.

    score      (M, D) -> (M,), finite; on the device of `prior_std`
    prior_std  (D,), or a number with `dimension` D
    states     M of each run; of these the best `keep` set the next level and are multiplied, then each takes `moves`
               steps of preconditioned Crank-Nicolson, which leave the prior as it is, without leaving the level. The
               size of the steps follows the share that is accepted
    runs       independent ones, 2 at least, for the interval

    ln P = sum over levels of ln(share that reaches the next). Sources: Au & Beck, Probab. Eng. Mech. 2001; Cerou,
    Del Moral, Furon & Guyader, Stat. Comput. 2012.
    """
    if not 0 < keep < 1 or states * keep < 10 or runs < 2 or moves < 1 or max_levels < 1:
        raise InputError(
            f"states {states}, keep {keep}, runs {runs}, moves {moves}", "are out of range",
            "At least 10 states must be kept at a level, and two runs made, with one move or more.",
        )  # fmt: skip
    if isinstance(prior_std, Tensor):
        deviation = prior_std
    elif dimension is not None:
        deviation = torch.full((dimension,), float(prior_std))
    else:
        raise InputError("dimension", "is not given", "Give it, or prior_std for each of the D numbers.")
    if deviation.dim() != 1 or not (torch.isfinite(deviation) & (deviation > 0)).all():
        raise InputError("prior_std", "is not one positive number for each of D", "Give standard deviations.")
    generator = torch.Generator(deviation.device).manual_seed(seed)
    found = [_run(score, deviation, level, states, keep, moves, max_levels, generator) for _ in range(runs)]
    logs = np.array([run[0] for run in found])
    reached = np.isfinite(logs)
    low, high = _interval(logs[reached])
    total = float(np.logaddexp.reduce(logs)) - math.log(runs) if reached.any() else -math.inf
    return RareProbability(
        total, (low, high), tuple(run[1] for run in found), min(run[2] for run in found), not reached.all()
    )


def _interval(logs: np.ndarray) -> tuple[float, float]:
    if len(logs) < 2:
        return -math.inf, 0.0
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return float(logs.mean()) - half, min(float(logs.mean()) + half, 0.0)


def _run(
    score: Score,
    deviation: Tensor,
    level: float,
    states: int,
    keep: float,
    moves: int,
    max_levels: int,
    generator: torch.Generator,
) -> tuple[float, int, float]:
    """ln probability (-inf where the level was not reached), levels passed, least acceptance."""

    def draw() -> Tensor:
        return deviation * torch.randn(
            states, len(deviation), generator=generator, device=deviation.device, dtype=deviation.dtype
        )

    theta = draw()
    values = _scored(score, theta)
    log_probability, step, least = 0.0, 0.5, 1.0
    for passed in range(max_levels):
        reached = max(float(values.quantile(keep)), level)
        inside = values <= reached
        log_probability += math.log(float(inside.float().mean()))
        if reached == level:
            return log_probability, passed, least
        survivors = inside.nonzero().squeeze(1)
        chosen = survivors[torch.randint(
            len(survivors), (states,), generator=generator, device=deviation.device
        )]  # fmt: skip
        theta, values, accepted = theta[chosen], values[chosen], 0.0
        for _ in range(moves):
            proposed = math.sqrt(1 - step**2) * theta + step * draw()
            scores = _scored(score, proposed)
            moved = scores <= reached
            theta = torch.where(moved.unsqueeze(1), proposed, theta)
            values = torch.where(moved, scores, values)
            share = float(moved.float().mean())
            accepted += share / moves
            # towards three in ten: smaller steps are accepted more often
            step = min(max(step * math.exp(share - 0.3), 1e-3), 0.99)
        least = min(least, accepted)
    return -math.inf, max_levels, least


def _scored(score: Score, theta: Tensor) -> Tensor:
    values = score(theta)
    if values.shape != (len(theta),) or torch.isnan(values).any():
        raise InputError(
            "score", f"gave {tuple(values.shape)} for {len(theta)} states, or NaN", "Give (M,) numbers."
        )
    return values
