"""How much losses change when parameters move: sharpness, and how differently two domains' losses change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.shifts.batch import Inputs

Examples = Sequence[tuple[Inputs, Tensor]]
"""Batches of inputs and labels (B,); the loss is the mean cross-entropy over all their examples."""


def epsilon_sharpness(
    network: nn.Module, examples: Examples, epsilon: float = 1e-3, steps: int = 10
) -> float:
    """100 (max L(w + e) - L(w)) / (1 + L(w)), the maximum over the box |e_i| <= epsilon (|w_i| + 1).

    Found by `steps` steps of sign gradient ascent, each a fifth of the box, projected back; the best of them
    counts. In evaluation mode; the network is left as it was.
    Source: Keskar et al. 2017, arXiv 1609.04836, metric 2.1 (there with L-BFGS-B).
    """
    if not epsilon > 0 or steps < 1:
        raise InputError(f"epsilon {epsilon}, steps {steps}", "are not positive", "Try 0.001 and 10.")
    with parameters_restored(network) as parameters:
        here = [p.detach().clone() for p in parameters]
        box = [epsilon * (p.abs() + 1) for p in here]
        start = best = None
        for _ in range(steps):
            loss, gradients = _gradient(network, parameters, [(examples, 1.0)])
            start = loss if start is None else start
            best = loss if best is None else max(best, loss)
            with torch.no_grad():
                for p, middle, edge, gradient in zip(parameters, here, box, gradients, strict=True):
                    p.copy_((p + 0.2 * edge * gradient.sign()).clamp(middle - edge, middle + edge))
        with torch.no_grad():
            last = float(_loss(network, examples))
        assert start is not None and best is not None
        return 100 * (max(best, last) - start) / (1 + start)


def loss_curve(network: nn.Module, examples: Examples, radii: Sequence[float]) -> Tensor:
    """(R,) losses L(w + r g / |g|) at each radius r, with g the gradient of L at w: what SAM looks at."""
    return _along(network, [(examples, 1.0)], radii)


def inconsistency_curve(
    network: nn.Module, source: Examples, other: Examples, radii: Sequence[float]
) -> Tensor:
    """(R,) largest |L_other - L_source| within each radius around the parameters, to first order.

    One step along the gradient of that difference. Zero radius gives the difference at the parameters.
    Source: Shin et al. 2024, arXiv 2403.07329, the inconsistency that UDIM bounds.
    """
    with parameters_restored(network), torch.no_grad():
        sign = 1.0 if _loss(network, other) >= _loss(network, source) else -1.0
    return _along(network, [(other, sign), (source, -sign)], radii)


def _along(network: nn.Module, terms: list[tuple[Examples, float]], radii: Sequence[float]) -> Tensor:
    """The weighted sum of losses at each radius along its own gradient."""
    values = []
    with parameters_restored(network) as parameters:
        here = [p.detach().clone() for p in parameters]
        _, gradients = _gradient(network, parameters, terms)
        length = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).clamp(min=1e-12)
        with torch.no_grad():
            for radius in radii:
                for p, start, gradient in zip(parameters, here, gradients, strict=True):
                    p.copy_(start + radius * gradient / length)
                values.append(sum(factor * float(_loss(network, part)) for part, factor in terms))
    return torch.tensor(values)


def _loss(network: nn.Module, examples: Examples) -> Tensor:
    losses = [nn.functional.cross_entropy(network(x), y, reduction="sum") for x, y in examples]
    return torch.stack(losses).sum() / sum(len(y) for _, y in examples)


def _gradient(
    network: nn.Module, parameters: list[nn.Parameter], terms: list[tuple[Examples, float]]
) -> tuple[float, list[Tensor]]:
    total = torch.stack([factor * _loss(network, part) for part, factor in terms]).sum()
    return float(total.detach()), list(torch.autograd.grad(total, parameters))


@contextmanager
def parameters_restored(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The trainable parameters, with the network in evaluation mode; afterwards all is as it was."""
    training = [module for module in network.modules() if module.training]
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the network", "has no parameter that trains", "Give one that does.")
    here = [p.detach().clone() for p in parameters]
    network.eval()
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for p, start in zip(parameters, here, strict=True):
                p.copy_(start)
        for module in training:
            module.training = True
