"""Gaussian latents: their divergence, the layer that infers them, and a prior that evolves from domain to domain."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unseen.errors import InputError

LOG_VARIANCE = (-8.0, 4.0)
"""Bounds of what a layer may say of a log-variance: beyond them a divergence is all but infinite."""


class Gaussian(NamedTuple):
    """Independent Gaussians: `mean` and `log_variance`, both (..., d)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The reparameterised draw that standard normal `noise` (..., d) stands for."""
        return self.mean + (self.log_variance / 2).exp() * noise


def kl_gaussian(posterior: Gaussian, prior: Gaussian | None = None) -> Tensor:
    """KL(posterior || prior) of each example (...), in nats, summed over d; None stands for N(0, 1).

    The analytic value of diagonal Gaussians (Kingma & Welling 2014, appendix B, for any prior).
    """
    mean, log_variance = posterior
    if prior is None:
        return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2
    apart = (mean - prior.mean).square() + log_variance.exp()
    each = apart * (-prior.log_variance).exp() - 1 + prior.log_variance - log_variance
    return each.sum(-1) / 2


class GaussianHead(nn.Module):
    """A linear layer from features (..., D) to a `Gaussian` of `size` dimensions."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.linear = nn.Linear(features, 2 * size)

    def forward(self, features: Tensor) -> Gaussian:
        mean, log_variance = self.linear(features).chunk(2, -1)
        return Gaussian(mean, log_variance.clamp(*LOG_VARIANCE))


class RecurrentPrior(nn.Module):
    """p(latent of domain t | latents of the domains before it, attribute), an LSTM or GRU over domains.

    What goes from domain to domain is the mean latent of each: examples of different domains are different
    people, so no single example has a past (LSSAE, Qin et al. 2022, pairs them by their place in the batch).

    size        dimensions of the latent; the hidden state has twice as many
    attributes  A, number of values of an attribute that shifts the prior; 0 for none
    """

    def __init__(self, size: int, kind: Literal["lstm", "gru"] = "lstm", attributes: int = 0):
        super().__init__()
        if kind not in ("lstm", "gru"):
            raise InputError(f"prior {kind!r}", "is not known", "Use lstm or gru.")
        self.size, self.attributes = size, attributes
        self.cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(size, 2 * size)
        self.head = GaussianHead(2 * size + attributes, size)

    def states(self, means: Tensor, present: Tensor) -> Tensor:
        """(T, 2 size) what the prior of each domain is made of, given mean latents (T, size) of the domains.

        present  (T,) 1.0, or 0.0 where a domain's mean is not known: the prior's own mean stands in for it
        """
        nothing = means.new_zeros(1, 2 * self.size)
        hidden, memory, before, found = nothing, nothing, means.new_zeros(1, self.size), []
        for mean, known in zip(means, present, strict=True):
            if isinstance(self.cell, nn.LSTMCell):
                hidden, memory = self.cell(before, (hidden, memory))
            else:
                hidden = self.cell(before, hidden)
            found.append(hidden)
            expected = self.head(nn.functional.pad(hidden, (0, self.attributes))).mean
            before = known * mean + (1 - known) * expected
        return torch.cat(found)

    def forward(self, states: Tensor, attribute: Tensor | None = None) -> Gaussian:
        """Prior of examples: the states (B, 2 size) of their domains and their attributes (B, A), one-hot."""
        return self.head(states if attribute is None else torch.cat([states, attribute], -1))

    def shift(self, change: Tensor) -> Tensor:
        """(B, size) how the mean moves when the attribute changes by `change` (B, A), a difference of one-hots."""
        return change @ self.head.linear.weight[: self.size, 2 * self.size :].T
