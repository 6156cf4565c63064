import math

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.measures.feature_spectrum import spectrum_report
from unseen.measures.kernel_spectrum import (
    effective_dimension,
    effective_number,
    kernel_spectrum,
    spectrum_of_kernel,
    vendi_score,
)

ORDERS = [0.1, 0.5, 1, 2, 5, math.inf]


def by_definition(kernel, q, weights=None):
    """As the package `vendi-score` computes `score_K`: K / n, or K with roots of probabilities on both sides."""
    n = len(kernel)
    scaled = kernel / n if weights is None else kernel * np.sqrt(np.outer(weights, weights))
    values = np.linalg.eigvalsh(scaled)
    values = values[values > 1e-12]
    if q == 1:
        return math.exp(-(values * np.log(values)).sum())
    if q == math.inf:
        return 1 / values.max()
    return math.exp(math.log((values**q).sum()) / (1 - q))


def cosine(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(12, 5))


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize("method", ["auto", "primal", "dual"])
def test_vendi_score_is_that_of_the_definition(x, q, method):
    assert vendi_score(x, q=q, method=method) == pytest.approx(by_definition(cosine(x), q), rel=1e-8)
    assert vendi_score(x.T, q=q, method=method) == pytest.approx(by_definition(cosine(x.T), q), rel=1e-8)
    assert vendi_score(kernel=cosine(x), q=q) == pytest.approx(by_definition(cosine(x), q), rel=1e-8)


@pytest.mark.parametrize("q", ORDERS)
def test_weights_are_probabilities(x, q):
    weights = np.random.default_rng(1).dirichlet(np.ones(12))
    expected = by_definition(cosine(x), q, weights)
    assert vendi_score(x, q=q, weights=weights) == pytest.approx(expected, rel=1e-8)
    assert vendi_score(x, q=q, weights=7 * weights, method="dual") == pytest.approx(expected, rel=1e-8)
    assert vendi_score(kernel=cosine(x), q=q, weights=weights) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [0, *ORDERS])
def test_kinds_that_have_nothing_in_common_are_counted(q, dtype):
    kinds = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0][:3].to(dtype)
    x = kinds.repeat(20, 1) * torch.rand(60, 1, generator=torch.Generator().manual_seed(1)).add(0.5)
    assert vendi_score(x, q=q) == pytest.approx(3, rel=1e-4)


def test_a_weight_of_zero_leaves_out_and_a_copy_counts_like_a_weight_of_two(x):
    doubled = np.concatenate([x, x[:1]])
    assert vendi_score(doubled) == pytest.approx(vendi_score(x, weights=[2, *[1] * 11]))
    assert vendi_score(x, weights=[0, *[1] * 11]) == pytest.approx(vendi_score(x[1:]))


def test_higher_orders_count_less_and_rows_may_be_turned_and_scaled(x):
    scores = [vendi_score(x, q=q) for q in ORDERS]
    assert scores == sorted(scores, reverse=True)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    assert vendi_score(3 * x @ turn) == pytest.approx(vendi_score(x))


def test_many_rows_are_multiplied_out_in_parts(monkeypatch, x):
    whole = kernel_spectrum(x)
    monkeypatch.setattr("unseen.measures.kernel_spectrum.ROWS", 5)
    torch.testing.assert_close(kernel_spectrum(x), whole)


def test_eigenvalues_are_squared_singular_values(x):
    values = spectrum_report(x, center=None, normalize=False).singular_values
    torch.testing.assert_close(kernel_spectrum(x, normalize=False), torch.from_numpy(values**2 / 12))


def test_effective_dimension_is_the_trace_of_the_ridge_smoother(x):
    gram = x @ x.T / 12
    expected = np.trace(gram @ np.linalg.inv(gram + 0.3 * np.eye(12)))
    assert effective_dimension(kernel_spectrum(x, normalize=False), 0.3) == pytest.approx(expected)
    with pytest.raises(InputError, match="ridge"):
        effective_dimension(kernel_spectrum(x), 0)


def test_a_spectrum_with_one_large_value_keeps_its_small_ones():
    shares = torch.tensor([0.5, *[0.5 / 400] * 400])
    x = torch.diag((shares * 401).sqrt())
    torch.testing.assert_close(
        kernel_spectrum(x, normalize=False), (shares).double().sort(descending=True).values, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.ones(1, 3)}, r"x: has shape \(1, 3\)"),
        ({"x": torch.tensor([[1.0, 0], [0, 0], [0, 0]])}, r"2 rows of zeros \(1, 2\)"),
        ({"x": torch.tensor([[1.0, 0], [math.nan, 0]])}, "NaN or infinite"),
        ({"x": torch.ones(2, 3), "q": -1}, "order q"),
        ({"x": torch.ones(2, 3), "q": math.nan}, "order q"),
        ({"x": torch.ones(2, 3), "weights": [1, -1]}, "weights"),
        ({"x": torch.ones(2, 3), "weights": [0, 0]}, "weights"),
        ({"x": torch.ones(2, 3), "weights": [1, 1, 1]}, "weights"),
        ({"x": torch.ones(2, 3), "method": "fast"}, "method 'fast'"),
        ({}, "takes either rows or a kernel"),
        ({"x": torch.eye(2), "kernel": torch.eye(2)}, "takes either rows or a kernel"),
        ({"kernel": torch.ones(2, 3)}, "not symmetric"),
        ({"kernel": 2 * torch.eye(2)}, "diagonal other than 1"),
        ({"kernel": torch.tensor([[1.0, 2], [2, 1]])}, "eigenvalue -0.5"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        vendi_score(**arguments)


def test_shares_need_not_come_from_a_kernel():
    assert effective_number(torch.tensor([0.5, 0.25, 0.25]), 2) == pytest.approx(1 / 0.375)
    assert effective_number(torch.tensor([0.5, 0.5, 0.0]), 0) == 2
    with pytest.raises(InputError):
        spectrum_of_kernel(torch.ones(1, 1))
