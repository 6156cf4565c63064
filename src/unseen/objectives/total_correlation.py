"""How far a block of latents is from independent of the others: a density ratio, learned by a discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class TotalCorrelation(nn.Module):
    """A discriminator of pairs (first, second) from pairs whose second part is of another example.

    Its logit estimates log p(first, second) / (p(first) p(second)), whose mean is the mutual information of the
    blocks (Kim & Mnih 2018, eq. 3, for two blocks). Each player has a loss of its own, so that both can take one
    joint step: `estimate` has no gradient into the discriminator, `loss` none into the latents.
    """

    def __init__(self, features: int, width: int = 64):
        super().__init__()
        self.discriminator = nn.Sequential(
            nn.Linear(features, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )  # fmt: skip

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean log density ratio of the pairs (B, F) and (B, S), for the encoders to minimise; may be negative."""
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, fixed, (torch.cat([first, second], 1),)).mean()

    def loss(self, first: Tensor, second: Tensor, order: Tensor) -> Tensor:
        """Binary cross-entropy of the discriminator; `order` (B,) permutes the second block, as a whole."""
        first, second = first.detach(), second.detach()
        paired = self.discriminator(torch.cat([first, second], 1))
        parted = self.discriminator(torch.cat([first, second[order]], 1))
        return (nn.functional.softplus(-paired) + nn.functional.softplus(parted)).mean() / 2
