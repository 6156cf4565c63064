"""Two-sample tests whose p-values come from permutations: MMD, energy distance, least-squares density difference.

Which example belongs to which set is shuffled many times; the p-value (1 + number of shuffles that differ as much as
the sets do) / (1 + shuffles) is exact for independent examples, whatever their distribution. All shuffles are the
rows of one 0/1 matrix, so that their statistics are one product with the (symmetric) kernel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.measures.two_samples import TwoSampleResult, two_sets

COLUMNS = 500
"""Of a kernel, that are multiplied at a time."""


def mmd(
    first: Any,
    second: Any,
    *,
    bandwidth: float | None = None,
    permutations: int = 999,
    max_examples: int = 2000,
    seed: int = 0,
) -> TwoSampleResult:
    """Maximum mean discrepancy with the kernel exp(-|x - y|^2 / (2 bandwidth^2)).

    first, second  (N, D) and (M, D), or vectors of one feature; computed on the device of `first`
    bandwidth      None: the median distance between all pairs of both sets together
    max_examples   of each set; of larger ones a subset drawn with `seed`

    Statistic: the unbiased estimate of MMD^2 (Gretton et al., JMLR 2012, eq. 3), negative at times when the sets are
    alike. Effect: its root, or 0; in [0, 1.42].
    """
    pooled, count = _pooled(first, second, max_examples, seed)
    distances = torch.cdist(pooled, pooled)
    width = _checked_bandwidth(bandwidth, distances)
    kernel = distances.square_().mul_(-0.5 / width**2).exp_()
    null = permuted_differences(kernel, count, permutations, seed)
    statistic = float(null[0])
    effect = math.sqrt(max(statistic, 0.0))
    return TwoSampleResult("mmd", statistic, _p_value(null), effect, (count, len(pooled) - count))


def energy_distance(
    first: Any, second: Any, *, permutations: int = 999, max_examples: int = 2000, seed: int = 0
) -> TwoSampleResult:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo, J. Stat. Plan. Inference 2013).

    Arguments as for `mmd`. Statistic: the unbiased estimate. Effect: its share of 2 E|X - Y| (the paper's coefficient
    of inhomogeneity), in [0, 1].
    """
    pooled, count = _pooled(first, second, max_examples, seed)
    distances = torch.cdist(pooled, pooled)
    between = 2 * float(distances[:count, count:].mean())
    null = permuted_differences(-distances, count, permutations, seed)
    statistic = float(null[0])
    effect = max(statistic, 0.0) / between if between > 0 else 0.0
    return TwoSampleResult("energy", statistic, _p_value(null), effect, (count, len(pooled) - count))


def density_difference(
    first: Any,
    second: Any,
    *,
    bandwidth: float | None = None,
    ridge: float = 0.01,
    centres: int = 200,
    permutations: int = 999,
    max_examples: int = 2000,
    seed: int = 0,
) -> TwoSampleResult:
    """Least-squares density difference, LSDD (Sugiyama et al., Neural Computation 2013).

    The difference of the densities is fitted directly, as a sum of Gaussians of width `bandwidth` around `centres`
    of the pooled examples, with weights from ridge regression. With H_kl = exp(-|c_k - c_l|^2 / (4 bandwidth^2)) and
    h the difference of the sets' mean Gaussians, weights are w = (H + ridge I)^-1 h and the statistic is
    2 w'h - w'Hw (section 2.4): the integral of the squared difference times (pi bandwidth^2)^(D/2), a factor that
    leaves the range of numbers when there are many features. Effect: the statistic's share of the same for
    both densities, 0 for equal and 1 for densities that do not overlap; biased upwards by terms of the order 1/N.

    Bandwidth (None: the median distance) and ridge are not chosen by how well the sets are told apart, as the paper
    does: with the permutations that would have to be repeated for each. Other arguments as for `mmd`.
    """
    pooled, count = _pooled(first, second, max_examples, seed)
    if not ridge > 0:
        raise InputError("ridge", f"is {ridge}", "Give a positive number, such as 0.01.")
    width = _checked_bandwidth(bandwidth, torch.cdist(pooled, pooled))
    chosen = np.random.default_rng(seed).permutation(len(pooled))[:centres]
    centre = pooled[torch.from_numpy(chosen).to(pooled.device)]
    overlap = torch.exp(-torch.cdist(centre, centre).square() / (4 * width**2))
    gaussians = torch.exp(-torch.cdist(centre, pooled).square() / (2 * width**2))
    inverse = torch.linalg.inv(
        overlap + ridge * torch.eye(len(centre), dtype=pooled.dtype, device=pooled.device)
    )
    quadratic = 2 * inverse - inverse @ overlap @ inverse

    members = _members(len(pooled), count, permutations, seed).to(pooled)
    sums = gaussians @ members.T
    of_first = sums / count
    of_second = (gaussians.sum(1, keepdim=True) - sums) / (len(pooled) - count)

    def integral(h: Tensor) -> Tensor:
        return (h * (quadratic @ h)).sum(0)

    null = integral(of_first - of_second)
    statistic = max(0.0, float(null[0]))  # the form is positive; rounding may not be
    both = float(integral(of_first[:, :1]) + integral(of_second[:, :1]))
    sizes = count, len(pooled) - count
    return TwoSampleResult("lsdd", statistic, _p_value(null), statistic / both if both > 0 else 0.0, sizes)


def permuted_differences(kernel: Tensor, count: int, permutations: int, seed: int = 0) -> Tensor:
    """Mean within the first set + mean within the second - 2 mean between, (1 + permutations,), float64.

    kernel  (N, N) symmetric; its diagonal plays no role: means are over pairs of different examples (unbiased)
    count   the first set is the first `count` rows
    The first entry is that of the sets as they are, the others those of shuffled sets.
    """
    others = len(kernel) - count
    members = _members(len(kernel), count, permutations, seed).to(kernel.device, torch.float32)
    diagonal = kernel.diagonal()
    rows = (kernel.sum(1) - diagonal).double()
    within_first = -(members @ diagonal.float()).double()
    # float32 takes half the time; it changes means by about 1e-7 of a kernel's values, shuffles by 1e-4. Of two
    # blocks of columns only the later is multiplied with the earlier, and counted twice: a quarter less time
    for start in range(0, len(kernel), COLUMNS):
        end = start + COLUMNS
        own, columns = members[:, start:end], kernel[:end, start:end].float()
        sums = (own @ columns[start:]).addmm_(members[:, :start], columns[:start], alpha=2)
        within_first += (sums * own).sum(1, dtype=torch.float64)
    between = members.double() @ rows - within_first
    within_second = rows.sum() - within_first - 2 * between
    return (
        within_first / (count * (count - 1))
        + within_second / (others * (others - 1))
        - 2 * between / (count * others)
    )


def _members(size: int, count: int, permutations: int, seed: int) -> Tensor:
    """(1 + permutations, size) uint8: 1 for examples of the first set; the first row as they are."""
    if not isinstance(permutations, int) or permutations < 1:
        raise InputError("permutations", f"is {permutations!r}", "Give a whole number from 1, such as 999.")
    members = np.zeros((1 + permutations, size), dtype=np.uint8)
    members[:, :count] = 1
    np.random.default_rng(seed).permuted(members[1:], axis=1, out=members[1:])
    return torch.from_numpy(members)


def _p_value(null: Tensor) -> float:
    """Share of entries at least as large as the first; shuffles that only swap equals may differ by rounding."""
    tolerance = 1e-6 * float(null.abs().max())
    return float((null >= null[0] - tolerance).sum()) / len(null)


def _pooled(first: Any, second: Any, max_examples: int, seed: int) -> tuple[Tensor, int]:
    """Examples of both sets, centred (distances keep more digits), and how many are of the first."""
    device = first.device if isinstance(first, Tensor) and first.device.type != "mps" else "cpu"  # float64
    a, b = (_subset(rows, max_examples, seed) for rows in two_sets(first, second))
    pooled = torch.from_numpy(np.concatenate([a, b])).to(device)
    return pooled - pooled.mean(0), len(a)


def _subset(rows: Any, most: int, seed: int) -> Any:
    if most < 2:
        raise InputError("max_examples", f"is {most}", "Give 2 at least, such as 2000.")
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def _checked_bandwidth(bandwidth: float | None, distances: Tensor) -> float:
    if bandwidth is not None:
        if not bandwidth > 0 or not math.isfinite(bandwidth):
            raise InputError(
                "bandwidth", f"is {bandwidth}", "Give a positive number, or None for the median."
            )
        return bandwidth
    above = torch.ones_like(distances, dtype=torch.bool).triu_(1)
    pairs = distances[above]
    # most pairs can be equal (predicted classes): then the mean; when all are, any width gives the same
    return float(pairs.median()) or float(pairs.mean()) or 1.0
