"""How alike two representations of the same examples are, up to rotation and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.errors import InputError


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment in [0, 1] of features (N, F) and (N, G) of the same N examples.

    |Y'X|^2 / (|X'X| |Y'Y|) with columns centred, Frobenius norms; one for features that differ by a rotation and
    a factor, NaN when one of them is constant. Raises `InputError` for other shapes.
    Source: Kornblith et al. 2019, arXiv 1905.00414, equation of section 3 ("linear CKA").
    """
    for name, features in (("first", first), ("second", second)):
        if features.dim() != 2 or len(features) != len(first) or len(features) < 2:
            problem = f"have shape {tuple(features.shape)}, the first {tuple(first.shape)}"
            raise InputError(f"{name} features", problem, "Give (examples, features) of the same examples.")
    x, y = (features.double() - features.double().mean(0) for features in (first, second))
    if len(x) < max(x.shape[1], y.shape[1]):  # Gram matrices of the examples are the smaller ones
        a, b = x @ x.T, y @ y.T
        return float((a * b).sum() / (torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)))
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float((y.T @ x).square().sum() / norms)
