"""Routing weights of a mixture-of-experts model: recorded, and how smooth, even and different they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.measures.kernel_spectrum import effective_dimension as _dimension_of_spectrum

ROUTERS = {
    "MixtureOfExperts": "router",
    "OlmoeSparseMoeBlock": "gate",
    "MixtralSparseMoeBlock": "gate",
    "Qwen2MoeSparseMoeBlock": "gate",
    "Qwen3MoeSparseMoeBlock": "gate",
}
"""Class of a block -> its attribute that routes: this toolkit's, and OLMoE, Mixtral and Qwen-MoE of transformers."""


class RoutingRecorder:
    """Reads the routing weights of a model: softmax(W x) of every router, over all experts, before any top-k.

    model           any module; in evaluation or training mode, its outputs are not changed
    router_modules  names of the modules that route, first layer first, each with a weight W (K, d), and maybe a
                    bias (K,), applied to the last dimension of its input; None: those of `ROUTERS`
    top_k           keep the top_k largest weights of each token, scaled to sum 1; None keeps all, as the paper does

    Raises InputError for a model without routers, with fewer than two, or with different numbers of experts.
    """

    def __init__(
        self, model: nn.Module, router_modules: Sequence[str] | None = None, top_k: int | None = None
    ):
        self.names = _preset(model) if router_modules is None else list(router_modules)
        modules = dict(model.named_modules())
        unknown = [name for name in self.names if name not in modules]
        if unknown:
            raise InputError("router_modules", f"name no module: {', '.join(unknown)}", "Give dotted names.")
        self.routers = [modules[name] for name in self.names]
        _check_routers(type(model).__name__, self.names, self.routers)
        if top_k is not None and not 1 <= top_k <= self.experts:
            raise InputError("top_k", f"is {top_k}", f"Give 1 to {self.experts}, or None for all.")
        self.top_k = top_k

    @property
    def experts(self) -> int:
        return len(_rows(self.routers[0]))

    @property
    def router_weights(self) -> Tensor:
        """Rows of the routers as they are now, (L, K, d): row k is the embedding of expert k."""
        return torch.stack([_rows(router) for router in self.routers])

    @contextmanager
    def watch(self, padding_mask: Tensor) -> Iterator[Recording]:
        """Within: one forward pass of N sequences is recorded; hooks are gone on exit.

        padding_mask  (N, T), nonzero for real tokens; only they count
        """
        real = padding_mask.bool()
        if real.dim() != 2 or not bool(real.any(dim=1).all()):
            raise InputError(
                "padding_mask",
                f"has shape {tuple(real.shape)} or rows without a token",
                "Give (N, T), nonzero for real tokens.",
            )
        recording = Recording(real, self.names, self.top_k)
        handles = [
            router.register_forward_hook(recording.hook(index)) for index, router in enumerate(self.routers)
        ]
        try:
            yield recording
        finally:
            for handle in handles:
                handle.remove()


class Recording:
    """Mean routing weights of N sequences, filled while the model runs."""

    def __init__(self, real: Tensor, names: Sequence[str], top_k: int | None):
        self._real, self._names, self._top_k = real, names, top_k
        self._share = real.float() / real.sum(dim=1, keepdim=True)
        self._layers: dict[int, Tensor] = {}

    @property
    def routing(self) -> Tensor:
        """(N, L, K) float32: weights averaged over the real tokens; they sum to 1 over experts."""
        missing = [name for index, name in enumerate(self._names) if index not in self._layers]
        if missing:
            raise InputError(
                "recording", f"has nothing of {', '.join(missing)}", "Run the model once within it."
            )
        return torch.stack([self._layers[index] for index in range(len(self._names))], dim=1)

    def hook(self, index: int) -> Any:
        @torch.no_grad()
        def keep(router: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            # computed anew: what a router returns differs between models and versions, what it does, not
            logits = F.linear(inputs[0], _rows(router), getattr(router, "bias", None))
            if logits[..., 0].numel() != self._real.numel():
                raise InputError(
                    "padding_mask",
                    f"is for {self._real.numel()} tokens, {self._names[index]} routed {logits[..., 0].numel()}",
                    "Give the mask of the batch that the model runs on.",
                )
            weights = logits.float().softmax(-1).view(*self._real.shape, -1)
            if self._top_k is not None:
                values, chosen = weights.topk(self._top_k, dim=-1)
                values = values / values.sum(-1, keepdim=True)
                weights = torch.zeros_like(weights).scatter(-1, chosen, values)
            self._layers[index] = torch.einsum("nt,ntk->nk", self._share.to(weights.device), weights)

        return keep


class Smoothness(NamedTuple):
    """How alike the experts of neighbouring layers are, a number a sample, each (N,)."""

    cosine: Tensor
    """Mean cosine of neighbouring routing embeddings, in [-1, 1]: HIGHER is smoother."""
    inconsistency: Tensor
    """The paper's C = 1 - mean cosine / (largest cosine + 1e-8): LOWER is smoother. Its table lists a positive
    correlation of accuracy with the opposite, about 1 - C."""
    meaningful: Tensor
    """Whether the inconsistency says anything: some cosine of the sample is above 0."""


def pathway_smoothness(routing: Any, router_weights: Any) -> Smoothness:
    """Cosines between routing embeddings e_l = sum_k routing[l, k] W_l[k] of neighbouring layers.

    routing         (N, L, K) weights from 0 that sum to 1 over experts, N >= 2, L >= 2
    router_weights  (L, K, d), rows of the routers. That rows of different layers can be compared is an
                    assumption: they read the same residual stream

    Where all cosines of a sample are at most 0, C divides by a number that is not positive and says nothing:
    an UnseenWarning tells how many such samples there are. Raises InputError for other shapes, and weights that
    are not normalised. Source: arXiv 2506.21551, section 3.
    """
    routing = as_routing(routing)
    if len(routing) < 2:
        raise InputError("routing", "is of one sample", "Give two samples at least.")
    rows = torch.as_tensor(router_weights).to(routing)
    if rows.shape[:2] != routing.shape[1:] or rows.dim() != 3:
        layers, experts = routing.shape[1:]
        raise InputError(
            "router_weights",
            f"have shape {tuple(rows.shape)}",
            f"Give ({layers}, {experts}, d) for this routing.",
        )
    embeddings = torch.einsum("nlk,lkd->nld", routing, rows)
    cosines = F.cosine_similarity(embeddings[:, :-1], embeddings[:, 1:], dim=-1)
    mean, largest = cosines.mean(dim=1), cosines.amax(dim=1)
    meaningful = largest > 0
    if not bool(meaningful.all()):
        warnings.warn(
            f"{int((~meaningful).sum())} of {len(routing)} samples have no positive cosine between layers: their "
            "inconsistency is meaningless. Use the mean cosine.",
            UnseenWarning,
            stacklevel=2,
        )
    return Smoothness(mean, 1 - mean / (largest + 1e-8), meaningful)


def routing_entropy(routing: Any) -> Tensor:
    """Entropy (nats) of the routing weights (N, L, K), mean over layers, (N,): from 0 to log K."""
    return torch.special.entr(as_routing(routing)).sum(-1).mean(-1)


def routing_kernel(routing: Any) -> Tensor:
    """Similarities (N, N) of samples: inner products of their routing weights (N, L, K), mean over layers."""
    routing = as_routing(routing)
    return torch.einsum("nlk,mlk->nm", routing, routing) / routing.shape[1]


def effective_dimension(kernel: Any, lam: float) -> float:
    """Tr(H (H + lam I)^-1) of similarities H (N, N), symmetric and positive semidefinite: in [0, N].

    Raises InputError for other matrices and lam <= 0. Source: arXiv 2506.21551, section 5.
    """
    kernel = torch.as_tensor(kernel).double()
    if (
        kernel.dim() != 2
        or kernel.shape[0] != kernel.shape[1]
        or not torch.allclose(kernel, kernel.T, atol=1e-5)
    ):
        raise InputError("kernel", f"{tuple(kernel.shape)} is not symmetric", "Give similarities (N, N).")
    values = torch.linalg.eigvalsh(kernel)
    if values[0] < -1e-4 * max(float(values[-1]), 1e-12):
        raise InputError(
            "kernel", f"has the eigenvalue {float(values[0]):.2g}", "Give a positive semidefinite kernel."
        )
    return _dimension_of_spectrum(values.clamp(min=0), lam)


def _preset(model: nn.Module) -> list[str]:
    return [
        f"{name}.{ROUTERS[type(block).__name__]}".lstrip(".")
        for name, block in model.named_modules()
        if type(block).__name__ in ROUTERS
    ]


def _check_routers(model: str, names: list[str], routers: list[nn.Module]) -> None:
    if not routers:
        known = ", ".join(ROUTERS)
        raise InputError(f"model {model}", f"has no router (known blocks: {known})", "Give router_modules.")
    if len(routers) < 2:
        raise InputError(f"model {model}", "has a single router", "A pathway needs two MoE layers at least.")
    for name, router in zip(names, routers, strict=True):
        weight = getattr(router, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise InputError(
                f"router {name}", "has no weight (K, d)", "Name the module that makes the logits."
            )
    shapes = {tuple(_rows(router).shape) for router in routers}
    if len(shapes) > 1:
        raise InputError(
            f"model {model}", f"has routers of shapes {sorted(shapes)}", "Name routers of one shape."
        )


def _rows(router: nn.Module) -> Tensor:
    return router.weight.detach()  # type: ignore[operator, union-attr, return-value]


def as_routing(routing: Any) -> Tensor:
    """Routing weights (N, L, K) as floats; InputError for other shapes, one layer, or sums other than 1."""
    routing = torch.as_tensor(routing).detach()
    if not routing.is_floating_point():
        routing = routing.float()
    if routing.dim() != 3 or len(routing) < 1 or routing.shape[1] < 2:
        raise InputError(
            "routing",
            f"has shape {tuple(routing.shape)}",
            "Give (samples, layers, experts), two layers at least.",
        )
    sums = routing.sum(-1)
    if not bool((routing >= 0).all()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise InputError(
            "routing", "is not normalised", "Give weights from 0 that sum to 1 over the experts."
        )
    return routing
