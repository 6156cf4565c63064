"""TRM: the head that is best in one domain predicts well in the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.group_dro import reweighted
from unseen.objectives.head_statistics import (
    full_precision,
    hessian_products,
    mean_products,
)
from unseen.objectives.shares import DomainRows
from unseen.objectives.targets import class_probabilities
from unseen.registry import objectives
from unseen.shifts import Batch


def own_probabilities(inputs: Tensor, heads: Tensor, domain: Tensor) -> Tensor:
    """(B, C) softmax of each example under the head of its own domain; inputs (B, F), heads (D, C, F)."""
    logits = torch.einsum("bf,kcf->kbc", inputs, heads)
    return logits[domain, torch.arange(len(domain), device=domain.device)].softmax(-1)


def fitted_heads(
    inputs: Tensor, targets: Tensor, rows: Tensor, domain: Tensor, start: Tensor, steps: int, rate: float
) -> Tensor:
    """(D, C, F) a head for each domain: `steps` of gradient descent on its own risk from `start` (C, F).

    inputs (B, F); targets (B, C); rows (D, B) weights of the examples in the risks.
    """
    heads = start.expand(len(rows), *start.shape)
    for _ in range(steps):
        residual = own_probabilities(inputs, heads, domain) - targets
        heads = heads - rate * mean_products(rows, residual, inputs)
    return heads


def inverse_hessian_products(
    inputs: Tensor, probabilities: Tensor, rows: Tensor, vectors: Tensor, terms: int
) -> Tensor:
    """(D, C, F) H_d^-1 v_d by the Neumann series a sum_k (I - a H)^k v, with `terms` terms after the first.

    H_d is the Hessian of domain d's risk in its head. a = min(1, 1 / L) with the bound L = mean |x|^2 / 2 on
    its largest eigenvalue: the plain series (a = 1) diverges for eigenvalues above 2.
    """
    bound = (rows @ inputs.square().sum(1) / 2).clamp(min=1)
    size = (1 / bound).view(-1, 1, 1)
    total = term = vectors
    for _ in range(terms):
        term = term - size * hessian_products(inputs, probabilities, None, rows, term)
        total = total + term
    return size * total


@objectives.register(
    "trm",
    summary="Transfer risk: the best head of each domain must do well in the others",
    paper="Xu & Jaakkola 2021, arXiv 2110.09940",
    search={
        "implicit_weight": ("log", 1e-5, 1.0),
        "step_size": ("log", 1e-3, 1e-1),
        "warmup_steps": ("choice", [0, 50, 100, 200]),
    },
)
class TRM(Objective):
    """Mean loss over all examples + mean over domains Q of sum_P alpha_QP R_P(w_Q), after `warmup_steps`.

    w_Q is the head fitted to domain Q (`fitted_heads`: head_steps, head_rate, from the network's head), P the
    other domains; alpha_Q are exponentiated weights that follow the worst P, as in GroupDRO with `step_size`.
    implicit_weight  weight of the part of the gradient in the features that comes through w_Q, by the implicit
                     function theorem: -(grad R_P)' H_Q^-1 (grad R_Q), with `terms` of `inverse_hessian_products`

    Defaults are DomainBed's, except: the warm-up is 200 of 5000 steps there, here 100; heads there go on from
    the last batch (from the network's head if classes are balanced), here they start at the network's; weights
    there grow with alpha R, here with R, as in GroupDRO; the implicit part there leaves out the bias.
    """

    needs_domains = True
    carries_weights = True
    weights: Tensor

    def __init__(
        self,
        implicit_weight: float = 1e-4,
        step_size: float = 0.01,
        head_steps: int = 30,
        head_rate: float = 0.1,
        terms: int = 10,
        warmup_steps: int = 100,
    ):
        super().__init__()
        for name, count in (("head_steps", head_steps), ("terms", terms), ("warmup_steps", warmup_steps)):
            if count < 0:
                raise InputError(name, f"is {count}", "Give a whole number from 0.")
        self.implicit_weight, self.step_size = implicit_weight, step_size
        self.head_steps, self.head_rate, self.terms = head_steps, head_rate, terms
        self.warmup_steps = warmup_steps

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.register_buffer("weights", torch.full((domains, domains), 1 / max(domains - 1, 1)))

    def resets_optimizer_at(self, step: int) -> bool:
        return step == self.warmup_steps > 0

    def forward(self, model: Network, batch: Batch) -> Loss:
        head = model.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise InputError(
                "head",
                f"is {type(head).__name__}, but TRM has closed forms",
                "Use a linear head with a bias.",
            )
        features = model.featurizer(batch.x)
        risk = example_losses(head(features), batch).mean()
        if batch.step < self.warmup_steps:
            return Loss(risk, {"risk": risk, "penalty": 0 * risk})
        with torch.autocast(features.device.type, enabled=False):
            wide = full_precision(features)
            start = torch.cat([head.weight, head.bias.unsqueeze(1)], 1).detach().to(wide.dtype)
            penalty = self._transfer_risk(wide, start, batch)
        return Loss(risk + penalty, {"risk": risk, "penalty": penalty})

    def _transfer_risk(self, features: Tensor, start: Tensor, batch: Batch) -> Tensor:
        of_domains = DomainRows.of(batch.domain, batch.domains, features.dtype)
        rows = of_domains.domains if batch.weight is None else of_domains.domains * batch.weight
        inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        fixed = inputs.detach()
        targets = class_probabilities(batch.y, len(start), features.dtype)
        heads = fitted_heads(fixed, targets, rows, batch.domain, start, self.head_steps, self.head_rate)

        logits = torch.einsum("bf,kcf->kbc", inputs, heads)
        losses = -(logits.log_softmax(-1) * targets).sum(-1)  # (Q, B)
        risks = losses @ rows.mT  # (Q, P)
        shares = self._shares(risks.detach(), of_domains.present, batch.repeat)

        # the risk elsewhere pulls on Q's head; this pull and the head's Hessian are constants for the gradient
        residual = logits.softmax(-1) - targets
        elsewhere = torch.einsum("kb,kbc,bf->kcf", shares @ rows, residual.detach(), fixed)
        probabilities = own_probabilities(fixed, heads, batch.domain)
        pull = inverse_hessian_products(fixed, probabilities, rows, elsewhere, self.terms)
        through_head = torch.einsum("kb,kbc,kcf,bf->k", rows, residual, pull, inputs)
        return of_domains.share @ ((shares * risks).sum(1) - self.implicit_weight * through_head)

    def _shares(self, risks: Tensor, present: Tensor, repeat: bool) -> Tensor:
        """(Q, P) weights of the domains P in the transfer risk of Q's head: sum to one, zero for Q itself."""
        other = 1 - torch.eye(len(risks), dtype=risks.dtype, device=risks.device)
        if not repeat:
            seen = risks * present * present.unsqueeze(1)
            self.weights.copy_(reweighted(self.weights.mT, seen.mT, self.step_size).mT)
        shares = self.weights.clone().to(risks.dtype) * other * present
        total = shares.sum(1, keepdim=True)
        return shares / torch.where(total > 0, total, torch.ones_like(total))
