"""How many different things N examples are: the spectrum of their similarities, and numbers that count it.

The effective rank of a matrix of features, by its singular values, is in `feature_spectrum`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.errors import InputError

ROWS = 4096
"""Rows that are scaled and multiplied together: they stay in the processor's caches."""


def kernel_spectrum(
    x: Any,
    *,
    weights: Any = None,
    normalize: bool = True,
    method: Literal["auto", "primal", "dual"] = "auto",
) -> Tensor:
    """Eigenvalues of diag(sqrt w) X X^T diag(sqrt w) for rows x (N, D): (min(N, D),) float64, largest first.

    weights    (N,) from 0, scaled to sum 1; None gives every row 1/N
    normalize  scale rows to length 1 first: similarities are cosines, and the eigenvalues sum to 1
    method     "primal" multiplies out (D, D), "dual" (N, N), which have the same eigenvalues besides zeros;
               "auto" takes the smaller. The product is in the dtype of x, the eigenvalues in float64

    Eigenvalues below 10 roundings of the largest are 0: orders below 1 would count them.
    Raises InputError for fewer than two rows, for rows of zeros where they are to be normalised (their numbers are
    named), and for numbers that are not finite.
    """
    x = _floats("x", x)
    if method not in ("auto", "primal", "dual"):
        raise InputError(f"method {method!r}", "is not known", "Give 'auto', 'primal' or 'dual'.")
    scale = _shares(weights, len(x), x).sqrt()
    if normalize:
        lengths = torch.linalg.vector_norm(x, dim=1)
        zero = (lengths == 0).nonzero()[:, 0].tolist()
        if zero:
            shown = ", ".join(map(str, zero[:10]))
            raise InputError("x", f"has {len(zero)} rows of zeros ({shown})", "Leave these examples out.")
        scale = scale / lengths
    if method == "dual" or (method == "auto" and len(x) < x.shape[1]):
        rows = x * scale.unsqueeze(1)
        product = rows @ rows.T
    else:
        product = x.new_zeros(x.shape[1], x.shape[1])
        for part, scales in zip(x.split(ROWS), scale.split(ROWS), strict=True):
            rows = part * scales.unsqueeze(1)
            product.addmm_(rows.T, rows)
    return _eigenvalues(product, "x", x.dtype).clamp(min=0)[: min(x.shape)]


def spectrum_of_kernel(kernel: Any, *, weights: Any = None) -> Tensor:
    """Eigenvalues of diag(sqrt w) K diag(sqrt w) for similarities K (N, N), largest first, (N,) float64.

    weights  (N,) from 0, scaled to sum 1; None gives every example 1/N

    K is symmetric, positive semidefinite, and has ones on its diagonal. Raises InputError where it has not.
    """
    kernel = _floats("kernel", kernel)
    if kernel.shape[0] != kernel.shape[1] or not torch.allclose(kernel, kernel.T, atol=1e-5):
        raise InputError("kernel", f"{tuple(kernel.shape)} is not symmetric", "Give similarities (N, N).")
    if not torch.allclose(kernel.diagonal(), torch.ones_like(kernel.diagonal()), atol=1e-4):
        raise InputError("kernel", "has a diagonal other than 1", "Divide K[i, j] by sqrt(K[i, i] K[j, j]).")
    scale = _shares(weights, len(kernel), kernel).sqrt()
    values = _eigenvalues(kernel * scale * scale.unsqueeze(1), "kernel", kernel.dtype)
    if values[-1] < -1e-4:
        raise InputError(
            "kernel", f"has the eigenvalue {float(values[-1]):.2g}", "Give a positive semidefinite kernel."
        )
    return values.clamp(min=0)


def effective_number(shares: Tensor, q: float = 1.0) -> float:
    """Hill number of order q of shares (K,) from 0 that sum to 1: K for equal ones, 1 for a single one.

    q  0: how many are above zero; 1: exp of the entropy; 2: 1 / sum of squares; inf: 1 / the largest. The
       higher q, the less rare kinds count

    Source: Hill 1973; Renyi's entropy of order q is its logarithm.
    """
    if math.isnan(q) or q < 0:
        raise InputError("order q", f"is {q}", "Give a number from 0, or infinity.")
    positive = shares[shares > 0].double()
    if q == math.inf:
        return float(1 / positive.max())
    if q == 1:
        return float(torch.exp(-(positive * positive.log()).sum()))
    return float(positive.pow(q).sum().pow(1 / (1 - q)))


def vendi_score(
    x: Any = None,
    *,
    kernel: Any = None,
    q: float = 1.0,
    weights: Any = None,
    method: Literal["auto", "primal", "dual"] = "auto",
) -> float:
    """Effective number of different examples, in [1, min(N, D)]: of rows x (N, D) by cosine, or by `kernel` (N, N).

    q        order from 0 to inf, see `effective_number`
    weights  (N,) probabilities of the examples; None for equal ones
    method   see `kernel_spectrum`

    It grows with N: compare sets of the same size. Raises InputError as `kernel_spectrum` does.
    Source: Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1; orders: Pasarkar & Dieng 2024, arXiv 2310.12952.
    """
    if (x is None) == (kernel is None):
        raise InputError("vendi_score", "takes either rows or a kernel", "Give vendi_score(x) or kernel=K.")
    if kernel is not None:
        return effective_number(spectrum_of_kernel(kernel, weights=weights), q)
    return effective_number(kernel_spectrum(x, weights=weights, method=method), q)


def effective_dimension(eigenvalues: Tensor, ridge: float) -> float:
    """Degrees of freedom of ridge regression: sum of v / (v + ridge) over eigenvalues v from 0, (K,).

    ridge  above 0, on the scale of the eigenvalues

    Source: Zhang 2005, "Learning bounds for kernel regression using effective data dimensionality".
    """
    if not ridge > 0:
        raise InputError("ridge", f"is {ridge}", "Give a number above 0.")
    return float((eigenvalues.double() / (eigenvalues.double() + ridge)).sum())


def _floats(name: str, values: Any) -> Tensor:
    values = torch.as_tensor(values).detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    if values.dim() != 2 or len(values) < 2 or values.shape[1] < 1:
        raise InputError(name, f"has shape {tuple(values.shape)}", "Give two rows or more, (N, D).")
    return values


def _shares(weights: Any, count: int, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_full((count,), 1 / count)
    weights = torch.as_tensor(weights).to(like)
    if weights.shape != (count,) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise InputError("weights", "are no weights of the examples", f"Give {count} finite numbers from 0.")
    return weights / weights.sum()


def _eigenvalues(product: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if not bool(torch.isfinite(product).all()):
        raise InputError(name, "has NaN or infinite values", "Leave these examples out.")
    values = torch.linalg.eigvalsh(product.double()).flip(0)
    return torch.where(values.abs() > 10 * torch.finfo(dtype).eps * values.abs().max(), values, 0.0)
