"""How far the outputs of a network are from a reference: a radius for TRAM, a penalty for TRPO, R3F and MESA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.errors import InputError, nearest
from unseen.objectives.continuous_inputs import input_noise
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.mmd import gaussian_gram, squared_mmd
from unseen.shifts import Batch

REFERENCES = ("previous", "pretrained", "ema", "input_noise")
ReferenceFunction = Callable[[nn.Module, Batch], Tensor]


def kl(there: Tensor, now: Tensor, share: Tensor) -> Tensor:
    there, now = there.log_softmax(-1), now.log_softmax(-1)
    # summed over classes: the released code of TRAM also averages over them, which makes it far smaller
    return share @ (there.exp() * (there - now)).sum(-1)


def reverse_kl(there: Tensor, now: Tensor, share: Tensor) -> Tensor:
    return kl(now, there, share)


def symmetric_kl(there: Tensor, now: Tensor, share: Tensor) -> Tensor:
    return kl(there, now, share) + kl(now, there, share)


def squared_distance(there: Tensor, now: Tensor, share: Tensor) -> Tensor:
    return share @ (there.softmax(-1) - now.softmax(-1)).square().sum(-1)


def mmd(there: Tensor, now: Tensor, share: Tensor) -> Tensor:
    return squared_mmd(gaussian_gram(torch.cat([there, now]).softmax(-1)), torch.cat([share, -share]))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "sym_kl": symmetric_kl,
    "l2": squared_distance,
    "mmd": mmd,
}
"""Divergences of two sets of N outputs: logits (N, C) of the reference and now, shares (N,) of the mean."""


class TrustRegion(nn.Module):
    """Divergence of a network's outputs from a reference's, both in evaluation mode (dropout is no distance).

    reference   "previous": the parameters before the last update; "pretrained": those that training began from;
                "ema": a moving average of past parameters; "input_noise": the present parameters on inputs with
                N(0, sigma^2) added (on embeddings, for tokens); or a function (network, batch) -> logits
    divergence  of the reference || now: "kl", "reverse_kl", "sym_kl" (their sum), "l2" (squared distance of
                the probabilities) or "mmd" (with a Gaussian kernel, of the sets of probabilities)
    decay       of the moving average
    seed        of the noise

    Call `observe` at the begin of every update: the parameters of the update before enter the reference. At the
    first one the reference is the network itself. References made of parameters are one flat vector of those
    that train, kept as a buffer; buffers of the network, such as running statistics, are the present ones.
    """

    reference: Tensor
    latest: Tensor

    def __init__(
        self,
        reference: str | ReferenceFunction = "previous",
        divergence: str = "kl",
        sigma: float = 0.1,
        decay: float = 0.999,
        seed: int = 0,
    ):
        super().__init__()
        if not callable(reference) and reference not in REFERENCES:
            remedy = f"Choose one of {', '.join(REFERENCES)}."
            raise InputError(f"reference {reference!r}", "is not known", remedy)
        if divergence not in DIVERGENCES:
            raise InputError(f"divergence {divergence!r}", "is not known", nearest(divergence, DIVERGENCES))
        if sigma < 0 or not 0 <= decay <= 1:
            problem = "are not a scale from 0 and a share from 0 to 1"
            raise InputError(f"sigma {sigma}, decay {decay}", problem, "Try sigma=0.1, decay=0.999.")
        self.kind, self.divergence = reference, divergence
        self.sigma, self.seed = sigma, seed
        self.decay = None if callable(reference) else {"previous": 0.0, "pretrained": 1.0, "ema": decay}.get(
            reference
        )  # fmt: skip
        self.register_buffer("reference", torch.empty(0))
        self.register_buffer("latest", torch.empty(0))

    @torch.no_grad()
    def observe(self, network: nn.Module) -> None:
        """Let the parameters of the update before enter the reference, and keep those of this one."""
        if self.decay is None:
            return
        now = torch.cat([p.flatten() for p in network.parameters() if p.requires_grad])
        if not self.observed:
            # copied in place, so that parameters of several runs in one stack are refused, not mixed up
            self.reference = torch.empty(now.shape, dtype=now.dtype, device=now.device).copy_(now)
            self.latest = self.reference.clone() if self.decay < 1 else self.latest
        elif self.decay < 1:
            self.reference.lerp_(self.latest, 1 - self.decay)
            self.latest.copy_(now)

    @property
    def observed(self) -> bool:
        """Whether there is a reference: always, unless it is made of parameters."""
        return self.decay is None or len(self.reference) > 0

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean divergence over examples, or over the tokens of logits (B, T, C) that `attention_mask` keeps.

        Gradients flow into the network as it is now, through noisy inputs, too, but not into other references.
        """
        with evaluation_mode(network):
            now = network(batch.x)
            there = self._reference_logits(network, batch)
        if there.shape != now.shape:
            problem = f"has outputs of shape {tuple(there.shape)}, the network {tuple(now.shape)}"
            raise InputError("the reference", problem, "Give a reference with the same classes.")
        share = _shares(batch, now)
        now, there = (full_precision(logits).flatten(0, -2) for logits in (now, there))
        return DIVERGENCES[self.divergence](there, now, share.to(now.dtype))

    def _reference_logits(self, network: nn.Module, batch: Batch) -> Tensor:
        if self.kind == "input_noise":
            with input_noise(network, batch, self.sigma, self.seed) as noised:
                return network(noised.x)
        with torch.no_grad():
            if callable(self.kind):
                return self.kind(network, batch)
            return functional_call(network, self._reference_parameters(network), (batch.x,))

    def _reference_parameters(self, network: nn.Module) -> dict[str, Tensor]:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        parts = self.reference.split([p.numel() for _, p in named])
        return {name: part.view_as(p).to(p.dtype) for (name, p), part in zip(named, parts, strict=True)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("reference", "latest"):  # empty until the first update: take over the size
            saved = state_dict.get(prefix + name)
            if saved is not None:
                own = getattr(self, name)
                setattr(self, name, torch.empty(saved.shape, dtype=saved.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _shares(batch: Batch, logits: Tensor) -> Tensor:
    """(N,) shares in the mean of the N rows of logits (..., C): masked tokens have none."""
    rows = logits.shape[:-1]
    kept = torch.ones(rows, device=logits.device)
    mask = batch.x.get("attention_mask") if isinstance(batch.x, dict) else None
    if mask is not None and mask.shape == rows:
        kept = kept * mask
    share = kept / kept.sum().clamp(min=1)
    if batch.weight is not None:
        share = share * batch.weight.view(-1, *[1] * (len(rows) - 1))
    return share.flatten()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, every layer is in evaluation mode; afterwards those that trained do so again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
