"""A small decoder whose every feed-forward network is a mixture of experts (MoE) behind a softmax router."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.language_model import DecoderLM


class MixtureOfExperts(nn.Module):
    """`experts` networks width - hidden - width; each token goes through the `top_k` of largest routing weight.

    The weights of the chosen experts are scaled to sum 1 (Mixtral, arXiv 2401.04088). `balance` is the
    load-balance loss of the last forward pass: experts * sum_k (share of choices of k) * (mean weight of k), 1 for
    even loads, at most experts / top_k (Switch Transformer, arXiv 2101.03961, equation 4).
    """

    balance: Tensor

    def __init__(self, width: int, experts: int, top_k: int, hidden: int):
        super().__init__()
        if not 1 <= top_k <= experts:
            raise InputError("top_k", f"is {top_k} of {experts} experts", "Give 1 <= top_k <= experts.")
        self.experts, self.top_k = experts, top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Linear(width, experts * hidden)
        self.down = nn.Linear(experts * hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        routing = self.router(x).softmax(-1)
        values, chosen = routing.topk(self.top_k, dim=-1)
        gates = torch.zeros_like(routing).scatter(-1, chosen, values / values.sum(-1, keepdim=True))
        loads = F.one_hot(chosen.flatten(), self.experts).to(x.dtype).mean(0)
        self.balance = self.experts * (loads * routing.flatten(0, -2).mean(0)).sum()
        # All experts see all tokens and those not chosen weigh 0: with a few small experts two plain products are
        # faster than sorting tokens by expert.
        hidden = F.gelu(self.up(x)).unflatten(-1, (self.experts, -1)) * gates.unsqueeze(-1)
        return self.down(hidden.flatten(-2))


class MoEDecoder(DecoderLM):
    """A `DecoderLM` with a `MixtureOfExperts` in every block.

    experts, top_k, hidden  of every mixture; the other arguments are those of `DecoderLM`
    """

    def __init__(
        self,
        vocabulary: int = 256,
        *,
        experts: int = 6,
        top_k: int = 2,
        hidden: int = 32,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        window: int = 64,
        positions: Literal["rope", "alibi"] = "rope",
        kv_heads: int | None = None,
        seed: int = 0,
    ):
        super().__init__(
            vocabulary,
            width=width,
            layers=layers,
            heads=heads,
            window=window,
            positions=positions,
            kv_heads=kv_heads,
            seed=seed,
        )
        for block in self.blocks:
            block.register_module("feedforward", MixtureOfExperts(width, experts, top_k, hidden))
        self._initialize(torch.Generator().manual_seed(seed), layers)

    def balance(self) -> Tensor:
        """Load-balance loss of the last forward pass, mean over layers, from 1 (even loads)."""
        mixtures = [module for module in self.modules() if isinstance(module, MixtureOfExperts)]
        return torch.stack([mixture.balance for mixture in mixtures]).mean()
