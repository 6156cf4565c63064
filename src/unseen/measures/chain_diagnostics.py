"""Whether Markov chains have mixed, and how many independent draws they are worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError
from unseen.measures.arrays import as_numbers


def r_hat(chains: Any) -> float:
    """Split R-hat of draws (chains, draws): 1 where all halves of chains look alike, above 1.01 they do not yet.

    Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.4. inf where the chains never move apart.
    """
    halves = _halves(chains)
    draws = halves.shape[1]
    within, between = halves.var(1, ddof=1).mean(), draws * halves.mean(1).var(ddof=1)
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return float(np.sqrt((draws - 1) / draws + between / (draws * within)))


def chain_sample_size(chains: Any) -> float:
    """Effective sample size of draws (chains, draws), from the autocorrelations within split chains.

    Geyer's initial monotone sequence of pairs of lags, as in Vehtari et al., Bayesian Anal. 2021. At most
    draws * log10(draws) of all draws together, for chains that alternate.
    """
    halves = _halves(chains)
    count, draws = halves.shape
    centred = halves - halves.mean(1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * draws)) ** 2
    covariance = np.fft.irfft(spectrum)[:, :draws].mean(0) / draws
    within = covariance[0] * draws / (draws - 1)
    total = within * (draws - 1) / draws + halves.mean(1).var(ddof=1)
    if total == 0:
        return float(count * draws)
    correlation = 1 - (within - covariance * draws / (draws - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: draws // 2 * 2].reshape(-1, 2).sum(1)
    positive = pairs[: int(np.argmax(pairs < 0))] if (pairs < 0).any() else pairs
    time = 2 * np.minimum.accumulate(positive).sum() - 1 if len(positive) else 1.0
    everything = count * draws
    return float(everything / max(time, 1 / math.log10(everything)))


def _halves(chains: Any) -> NDArray[np.float64]:
    """(2 chains, draws // 2): a chain that drifts differs from itself."""
    values = as_numbers("chains", chains, 2)
    if values.shape[1] < 4 or not np.isfinite(values).all():
        raise InputError("chains", f"have {values.shape[1]} draws or infinite ones", "Give four at least.")
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, -half:]])
