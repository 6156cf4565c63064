"""Hutchinson's estimate of the diagonal of the head's Hessian; its memory does not grow with the probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.objectives.head_statistics import check_shapes, full_precision
from unseen.objectives.shares import DomainRows
from unseen.shifts.sampling import derive_seed


def hutchinson_diagonal(
    features: Tensor,
    logits: Tensor,
    domain: Tensor,
    domains: int,
    *,
    probes: int,
    seed: int = 0,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(1/T) sum_t z_t * (H_e z_t) with T Rademacher probes z_t: estimates (D, C, F+1), and `present` (D,).

    For a linear softmax head; arguments as in `head_statistics`, which has the exact diagonal at less cost.
    All domains share the probes (common random numbers), so that a difference between domains is a difference
    of curvature; they are a pure function of `seed`. H z is a closed form, so one backward pass suffices.
    Source: Hutchinson 1990; Hemati et al. 2023, arXiv 2308.11778, section 5.
    """
    if probes < 1:
        raise InputError("probes", f"is {probes}", "Give a whole number of probes from 1, or None for exact.")
    check_shapes(features, logits, domain, domains, weight)
    features, logits = full_precision(features), full_precision(logits)
    rows = DomainRows.of(domain, domains, features.dtype)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    curvature = _ProbedCurvature.apply(inputs, torch.softmax(logits, -1), probes, seed)
    if weight is not None:
        curvature = curvature * weight.view(-1, 1, 1)
    return torch.einsum("kb,bcf,bf->kcf", rows.domains, curvature, inputs), rows.present


def _signs(shape: tuple[int, ...], seed: int, index: int, like: Tensor) -> Tensor:
    # NumPy: torch's generators cannot draw inside vmap, and both passes must draw the same
    bits = np.random.default_rng(derive_seed(seed, index)).integers(0, 2, shape, dtype=np.int8)
    return torch.from_numpy(2 * bits - 1).to(device=like.device, dtype=like.dtype)


class _ProbedCurvature(torch.autograd.Function):
    """W_b = (1/T) sum_t z_t * u_bt, (B, C, F), with u = p a - p <p, a>, a = z_t x_b for the inputs x (B, F).

    Probes are drawn a few at a time and drawn again in the backward pass, so none of them is kept.
    """

    generate_vmap_rule = True
    CHUNK = 16

    @classmethod
    def probes(cls, count: int, seed: int, inputs: Tensor, probabilities: Tensor) -> Any:
        shape = probabilities.shape[-1], inputs.shape[-1]
        for index, start in enumerate(range(0, count, cls.CHUNK)):
            yield _signs((min(cls.CHUNK, count - start), *shape), seed, index, inputs)

    @staticmethod
    def forward(inputs: Tensor, probabilities: Tensor, count: int, seed: int) -> Tensor:
        total = torch.zeros_like(probabilities.unsqueeze(2) * inputs.unsqueeze(1))
        p = probabilities.unsqueeze(1)
        for signs in _ProbedCurvature.probes(count, seed, inputs, probabilities):
            along = torch.einsum("bf,tcf->btc", inputs, signs)
            products = p * (along - (p * along).sum(-1, keepdim=True))
            total = total + torch.einsum("btc,tcf->bcf", products, signs)
        return total / count

    @staticmethod
    def setup_context(ctx: Any, arguments: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        inputs, probabilities, ctx.count, ctx.seed = arguments
        ctx.save_for_backward(inputs, probabilities)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inputs, probabilities = ctx.saved_tensors
        to_inputs, to_probabilities = torch.zeros_like(inputs), torch.zeros_like(probabilities)
        p = probabilities.unsqueeze(1)
        for signs in _ProbedCurvature.probes(ctx.count, ctx.seed, inputs, probabilities):
            along = torch.einsum("bf,tcf->btc", inputs, signs)
            centred = along - (p * along).sum(-1, keepdim=True)
            back = torch.einsum("bcf,tcf->btc", gradient, signs)
            mean_back = (p * back).sum(-1, keepdim=True)
            to_inputs = to_inputs + torch.einsum("btc,tcf->bf", p * (back - mean_back), signs)
            to_probabilities = to_probabilities + (back * centred - mean_back * along).sum(1)
        return to_inputs / ctx.count, to_probabilities / ctx.count, None, None
