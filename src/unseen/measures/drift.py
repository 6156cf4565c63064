"""Has what arrives drifted away from a reference? Two-sample tests on what a network gives for both."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.measures.permutation_tests import density_difference, energy_distance, mmd
from unseen.measures.two_samples import (
    TwoSampleResult,
    as_examples,
    classifier_test,
    cramer_von_mises,
    kolmogorov_smirnov,
)
from unseen.networks import Bank

TESTS: dict[str, Callable[..., TwoSampleResult]] = {
    "mmd": mmd,
    "energy": energy_distance,
    "lsdd": density_difference,
    "ks": kolmogorov_smirnov,
    "cvm": cramer_von_mises,
    "classifier": classifier_test,
}
Quantity = Literal["features", "logits", "familiarity", "classes"]
SURELY_CORRELATED = 0.001
"""p-value of the serial correlation from which `drift` warns: one warning in a thousand is false."""
LONGEST = 2000
"""Examples, from the first, in which a serial correlation is sought."""


class Scorer(Protocol):
    """A fitted detector, or `Familiarity`."""

    def score(self, bank: Bank) -> Tensor: ...


@dataclass(frozen=True)
class SerialCorrelation:
    """correlation  of neighbours, in [-1, 1], over all features together
    p_value      one-sided, by permutation: how often a random order would have neighbours as much alike
    """

    correlation: float
    p_value: float


def drift(
    reference: Bank,
    stream: Bank,
    *,
    test: str = "mmd",
    on: Quantity = "features",
    scorer: Scorer | None = None,
    **options: Any,
) -> TwoSampleResult:
    """Test whether `stream` comes from another distribution than `reference`.

    reference  held-out examples of the training distribution: on training examples a network is too sure
    stream     what arrived, in the order of arrival
    test       "mmd", "energy", "lsdd", "ks", "cvm" or "classifier"; `options` are those of its function
    on         "features", "logits", "familiarity" (scores of `scorer`) or "classes" (predicted ones, as 0/1 vectors)

    A drift need not hurt (shares of classes change too), and one along directions that the network ignores is not
    seen. Warns when neighbours of the stream resemble each other: every test takes them for independent, and its
    p-values are too small then. Raises InputError for unknown names and sets that cannot be compared.
    """
    if test not in TESTS:
        raise InputError(f"test {test!r}", "is not known", nearest(test, TESTS))
    first, second = (_quantity(bank, on, scorer) for bank in (reference, stream))
    found = TESTS[test](first, second, **options)
    warn_of_correlation(serial_correlation(second), len(stream))
    return found


def serial_correlation(values: Any, *, permutations: int = 999, seed: int = 0) -> SerialCorrelation:
    """Do neighbours in the order of `values`, (N, D) or (N,), resemble each other?

    The test of Wald & Wolfowitz (Ann. Math. Stat. 1943) for many features: sum over t of <z_t, z_t+1> over sum of
    |z_t|^2, with features z standardised. The first 2,000 examples are used. A trend counts as correlation.
    """
    values = as_examples("values", values)[:LONGEST]
    deviations = values.std(0)
    z = ((values - values.mean(0)) / np.where(deviations > 0, deviations, 1))[:, deviations > 0]
    if not z.size:
        return SerialCorrelation(0.0, 1.0)
    products = z @ z.T
    generator = np.random.default_rng(seed)
    observed = float(np.trace(products, 1))
    as_much = 1
    for _ in range(permutations):
        order = generator.permutation(len(z))
        as_much += products[order[:-1], order[1:]].sum() >= observed - 1e-9 * len(z) * z.shape[1]
    return SerialCorrelation(observed / float(np.trace(products)), float(as_much / (1 + permutations)))


def warn_of_correlation(found: SerialCorrelation, examples: int) -> bool:
    """Warn when the order of examples surely matters, with about how many independent ones they are worth."""
    if found.p_value > SURELY_CORRELATED:
        return False
    worth = max(1, round(examples * (1 - found.correlation) / (1 + found.correlation)))
    warnings.warn(
        f"stream: neighbours resemble each other (serial correlation {found.correlation:.2f}): {examples} examples "
        f"are worth about {worth} independent ones, and p-values of drift are too small. Compare effects, or test "
        "every so many examples only",
        UnseenWarning,
        stacklevel=3,
    )
    return True


def _quantity(bank: Bank, on: str, scorer: Scorer | None) -> Tensor | NDArray[np.float64]:
    if on == "features":
        return bank.features
    if on == "logits":
        return bank.logits
    if on == "classes":
        return one_hot(bank.predictions, bank.logits.shape[1]).to(torch.float64)
    if on == "familiarity":
        if scorer is None:
            raise InputError("scorer", "is missing", "Give the fitted detector whose scores are compared.")
        return scorer.score(bank)
    names = ("features", "logits", "familiarity", "classes")
    raise InputError(f"on {on!r}", "is not known", nearest(str(on), names))
