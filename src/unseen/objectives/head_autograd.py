"""Statistics of each domain's risk in the parameters of any head, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unseen.errors import InputError
from unseen.objectives.head_statistics import (
    HeadStatistics,
    check_names,
    check_shapes,
    full_precision,
    head_statistics,
)
from unseen.objectives.shares import DomainRows


def head_statistics_by_autograd(
    head: nn.Module,
    features: Tensor,
    targets: Tensor,
    domain: Tensor,
    domains: int,
    *,
    order: Collection[str] = ("loss", "gradient"),
    weight: Tensor | None = None,
    chunk: int = 64,
) -> HeadStatistics:
    """The statistics of `head_statistics` for any twice differentiable head.

    Parameter-shaped statistics are (D, P) over all P parameters of the head, flattened one after the other, and
    the Hessian (D, P, P). `chunk` limits how many rows of it are worked on at a time. Features stay differentiable.
    Raises `InputError` for a head whose logits, or whose gradient, autograd can't differentiate in its parameters.
    """
    check_names(order)
    parameters: dict[str, Tensor] = dict(head.named_parameters())
    if not parameters:
        raise InputError("head", "has no parameters", "Give the module that maps features to logits.")
    features = full_precision(features)
    logits = head(features)
    check_shapes(features, logits, domain, domains, weight)
    trained = any(parameter.requires_grad for parameter in parameters.values())
    if trained and torch.is_grad_enabled() and not logits.requires_grad:
        problem = "has logits that do not depend smoothly on its parameters, so every gradient is zero"
        raise InputError("head", problem, "Leave out steps such as comparisons, rounding and argmax.")
    rows = DomainRows.of(domain, domains, features.dtype)
    weights = torch.ones_like(features[:, 0]) if weight is None else weight

    def losses(parameters: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        outputs = functional_call(head, parameters, (x,))
        return w * nn.functional.cross_entropy(outputs, y, reduction="none")

    def risk(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return row @ losses(parameters, features, targets, weights)

    def flat(tree: dict[str, Tensor]) -> Tensor:
        return torch.cat([tree[name].flatten() for name in parameters])

    def slope(parameters: dict[str, Tensor], row: Tensor, direction: Tensor) -> Tensor:
        return flat(grad(risk)(parameters, row)) @ direction

    def hessian_product(row: Tensor, direction: Tensor) -> Tensor:
        return flat(grad(slope)(parameters, row, direction))

    simple = [n for n in order if n in ("loss", "scale_gradient", "feature_mean", "feature_covariance")]
    closed = head_statistics(features, logits, targets, domain, domains, order=simple, weight=weight)
    found = {name: torch.cat([closed.values[name], closed.pooled[name].unsqueeze(0)]) for name in simple}
    try:
        gradients = vmap(lambda row: flat(grad(risk)(parameters, row)))(rows.all)
        found["gradient"] = gradients
        if "gradient_variance" in order:
            each = vmap(
                lambda x, y, w: flat(
                    grad(lambda q: losses(q, x[None], y[None], w[None]).squeeze(0))(parameters)
                )
            )(features, targets, weights)
            found["gradient_variance"] = rows.all @ each.square() - gradients.square()
        if "hessian_gradient" in order:
            found["hessian_gradient"] = vmap(hessian_product)(rows.all, gradients)
        unit = torch.eye(gradients.shape[1], dtype=features.dtype, device=features.device)
        if "hessian_diagonal" in order:
            found["hessian_diagonal"] = torch.stack(
                [
                    vmap(lambda e, row=row: hessian_product(row, e) @ e, chunk_size=chunk)(unit)
                    for row in rows.all
                ]
            )
        if "hessian" in order:
            found["hessian"] = torch.stack(
                [vmap(partial(hessian_product, row), chunk_size=chunk)(unit) for row in rows.all]
            )
    except RuntimeError as error:
        raise InputError(
            "head",
            f"cannot be differentiated twice ({error})",
            "Use operations that have second derivatives.",
        ) from error
    return HeadStatistics(
        {name: found[name][:-1] for name in order}, {name: found[name][-1] for name in order}, rows
    )
