"""What each domain's risk looks like from the head: value, gradient and its variance, curvature, features.

Many penalties compare one of these across domains: V-REx, IGA, Fishr, CORAL, IRM, Hessian alignment. For a
linear softmax head all of them are closed forms in features, probabilities and labels: a few matrix products
serve every domain, and results are differentiable in features and head without double backward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks.gradient_rows import full_precision
from unseen.objectives.shares import DomainRows, example_shares, unbiased_factor
from unseen.objectives.targets import class_probabilities

STATISTICS = (
    "loss",
    "gradient",
    "gradient_variance",
    "hessian_gradient",
    "hessian_diagonal",
    "hessian",
    "scale_gradient",
    "feature_mean",
    "feature_covariance",
)


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics by name, of D domains and of the pooled risk (the mean of the risks of the present domains).

    values  (D, ...) each; zero for a domain that has no example in the batch
    pooled  (...) each; not always the mean over domains: H g of the pooled risk is (mean H)(mean g)
    rows    which examples and domains are there
    """

    values: dict[str, Tensor]
    pooled: dict[str, Tensor]
    rows: DomainRows

    def over_present(self, values: Tensor) -> Tensor:
        """Mean of (D, ...) over the domains that are present."""
        with torch.autocast(values.device.type, enabled=False):
            return (self.rows.share @ values.flatten(1 if values.dim() > 1 else 0)).view(values.shape[1:])


def head_statistics(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    domain: Tensor,
    domains: int,
    *,
    order: Collection[str] = ("loss", "gradient"),
    weight: Tensor | None = None,
    pooled: bool = True,
) -> HeadStatistics:
    """Closed-form statistics of a linear softmax head, for all domains in one pass.

    features  (B, F) float, inputs of the head
    logits    (B, C) float, `features @ W.T + b`. A logistic head of one logit s is the case [0, s]: its
              statistics are those of the second row
    targets   (B,) int64 labels or (B, C) float soft targets whose rows sum to one
    domain    (B,) int64 in [0, domains)
    order     names from `STATISTICS`; only these are computed
    weight    (B,) float or None: multiplies each example's loss (and counts examples in feature moments)
    pooled    False leaves out the statistics of the pooled risk, at less cost

    With p the probabilities, r = p - y, z the features and a last feature of 1 for the bias:
      loss                (D,)          R = mean cross-entropy
      gradient            (D, C, F+1)   g = mean r z'
      gradient_variance   (D, C, F+1)   mean (r z')^2 - g^2 over examples (biased), per coordinate
      hessian_gradient    (D, C, F+1)   H g = mean u z' with a = g z, u = p a - p <p, a>; also the factor g is
                                        differentiated, as in the identity H g = |g| grad |g|
      hessian_diagonal    (D, C, F+1)   mean p (1 - p) z^2
      hessian             (D, C, F+1, C, F+1)
                                        mean (diag p - p p') x (z z'), for small heads: (C (F+1))^2 numbers a domain
      scale_gradient      (D,)          derivative of R in a factor on the logits, at 1: mean <r, logits>
      feature_mean        (D, F)
      feature_covariance  (D, F, F)     unbiased (divided by n - 1); zero for one example
    Sources: Hemati et al. 2023, arXiv 2308.11778, section 4; scale gradient: Arjovsky et al. 2019, IRMv1.
    """
    check_names(order)
    check_shapes(features, logits, domain, domains, weight)
    features, logits = full_precision(features), full_precision(logits)
    of_domains = DomainRows.of(domain, domains, features.dtype)
    rows = of_domains.all if pooled else of_domains.domains

    def weighted(each: Tensor) -> Tensor:
        return each if weight is None else each * weight.view(-1, *[1] * (each.dim() - 1))

    found: dict[str, Tensor] = {}
    if "loss" in order:
        found["loss"] = rows @ weighted(nn.functional.cross_entropy(logits, targets, reduction="none"))
    if set(order) - {"loss", "feature_mean", "feature_covariance"}:
        probabilities = torch.softmax(logits, -1)
        residual = weighted(probabilities - class_probabilities(targets, logits.shape[1], logits.dtype))
    if "scale_gradient" in order:
        found["scale_gradient"] = rows @ (residual * logits).sum(1)
    if {"gradient", "gradient_variance", "hessian_gradient", "hessian_diagonal", "hessian"} & set(order):
        inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    if {"gradient", "gradient_variance", "hessian_gradient"} & set(order):
        found["gradient"] = mean_products(rows, residual, inputs)
    if "gradient_variance" in order:
        squares = mean_products(rows, residual.square(), inputs.square())
        found["gradient_variance"] = squares - found["gradient"].square()
    if "hessian_gradient" in order:
        directions = found["gradient"]
        found["hessian_gradient"] = hessian_products(inputs, probabilities, weight, rows, directions)
    if "hessian_diagonal" in order:
        curvature = weighted(probabilities * (1 - probabilities))
        found["hessian_diagonal"] = mean_products(rows, curvature, inputs.square())
    if "hessian" in order:
        curvatures = weighted(
            torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
        )
        found["hessian"] = torch.einsum("kb,bcd,bf,bg->kcfdg", rows, curvatures, inputs, inputs)
    if "feature_mean" in order or "feature_covariance" in order:
        shares = example_shares(rows, weight)
        means = found["feature_mean"] = shares @ features
        if "feature_covariance" in order:
            found["feature_covariance"] = _covariances(features, shares, means)
    found = {name: found[name] for name in order}
    if not pooled:
        return HeadStatistics(found, {}, of_domains)
    values, of_all = ({n: v[part] for n, v in found.items()} for part in (slice(-1), -1))
    return HeadStatistics(values, of_all, of_domains)


def hessian_products(
    inputs: Tensor, probabilities: Tensor, weight: Tensor | None, rows: Tensor, directions: Tensor
) -> Tensor:
    """H_k V_k for K risks: `rows` (K, B) weigh the examples, `directions` V and the result are (K, C, F).

    `inputs` (B, F) hold the constant feature of the bias, if there is one; H is the Hessian of softmax
    cross-entropy in the head's weights.
    """
    along = inputs @ directions.transpose(1, 2)  # (K, B, C)
    if weight is not None:
        rows = rows * weight
    products = probabilities * along
    return mean_products(rows, products - probabilities * products.sum(-1, keepdim=True), inputs)


def covariance_discrepancy(features: Tensor, rows: DomainRows, weight: Tensor | None = None) -> Tensor:
    """Mean over present domains of |cov_e - mean cov|^2 (Frobenius): a scalar.

    Equal to the discrepancy of `feature_covariance`. Where B < D F no F x F matrix is formed: <cov_i, cov_j> is a
    weighted sum of squares of the B x B Gram matrix of the centred features, which is cheaper then.
    """
    features = full_precision(features)
    shares = example_shares(rows.domains, weight)
    if len(features) >= len(shares) * features.shape[1]:
        covariances = _covariances(features, shares, shares @ features)
        apart = (covariances - torch.einsum("k,kfg->fg", rows.share, covariances)).square().sum((1, 2))
        return apart @ rows.share
    member = (shares > 0).to(features.dtype)
    # the means need no gradient: centred features of a domain sum to zero, which cancels it
    centred = features - member.T @ (shares @ features.detach())
    scaled = shares * unbiased_factor(shares).unsqueeze(1)
    count = rows.present.sum().clamp(min=1)
    mean = scaled.sum(0) / count
    pairs = scaled.T @ scaled / count - mean.unsqueeze(1) * mean  # (B, B)
    return (pairs * _SymmetricGram.apply(centred).square()).sum().clamp(min=0)


def _covariances(features: Tensor, shares: Tensor, means: Tensor) -> Tensor:
    """(K, F, F) unbiased covariances of K weightings `shares` (K, B) of the examples, with their means (K, F)."""
    second = torch.einsum("kb,bf,bg->kfg", shares, features, features)
    covariances = second - means.unsqueeze(2) * means.unsqueeze(1)
    return covariances * unbiased_factor(shares).view(-1, 1, 1)


class _SymmetricGram(torch.autograd.Function):
    """X X', for losses that treat its entries (i, j) and (j, i) alike: one product backwards instead of two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (2 * gradient) @ ctx.saved_tensors[0]


def mean_products(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(K, C, F): for each row of weights (K, B) the mean of left (B, C) or (K, B, C) times right (B, F)."""
    weighted = (rows.unsqueeze(-1) * left).transpose(1, 2)
    return (weighted.flatten(0, 1) @ right).unflatten(0, (len(rows), -1))  # one product, also of stacked runs


def check_names(order: Collection[str]) -> None:
    for name in order:
        if name not in STATISTICS:
            raise InputError(f"statistic {name!r}", "is not known", nearest(name, STATISTICS))


def check_shapes(
    features: Tensor, logits: Tensor, domain: Tensor, domains: int, weight: Tensor | None
) -> None:
    if features.dim() != 2:
        raise InputError("features", f"have shape {tuple(features.shape)}", "Give (examples, features).")
    if domains < 1:
        raise InputError("domains", f"is {domains}", "Give the number of domains, from 1.")
    sizes = {
        "logits": len(logits),
        "domain": len(domain),
        "weight": len(features if weight is None else weight),
    }
    for name, size in sizes.items():
        if size != len(features):
            raise InputError(
                name, f"has {size} rows for {len(features)} features", "Give one row an example."
            )
