"""How well a language model predicts at each position, under each attention policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.attention_policy import POLICIES
from unseen.sequences.extend_context import extend_context

Bucket = tuple[int, int]


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Next-token logits (B, T, V) of a `DecoderLM` or a transformers decoder."""
    output = model(tokens)
    return output if isinstance(output, Tensor) else output.logits


@torch.no_grad()
def token_nll(model: nn.Module, tokens: Tensor, *, batch: int = 8) -> Tensor:
    """Negative log-likelihood (nats) of each token given those before it, (N, T - 1) for tokens (N, T)."""
    rows = []
    for part in tokens.split(batch):
        logits = logits_of(model, part[:, :-1]).float()
        rows.append(F.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none"))
    return torch.cat(rows)


def nll_by_position(
    model: nn.Module, tokens: Tensor, buckets: Sequence[Bucket], *, batch: int = 8
) -> dict[Bucket, float]:
    """Mean negative log-likelihood (nats per token) of targets at positions lo <= t < hi, by bucket.

    tokens   (N, T) int64; the target at position t is tokens[:, t], predicted from the t tokens before it
    buckets  pairs with 1 <= lo < hi <= T

    Averaged perplexity hides length effects; compare methods by bucket, on the same targets.
    """
    _check_buckets(buckets, tokens)
    return _average(token_nll(model, tokens, batch=batch), buckets)


@torch.no_grad()
def recompute_nll(
    model: nn.Module,
    tokens: Tensor,
    window: int,
    buckets: Sequence[Bucket],
    *,
    stride: int = 1,
    batch: int = 256,
) -> dict[Bucket, float]:
    """The expensive reference: each target predicted by a fresh pass over the `window` tokens before it.

    stride  take every stride-th target of a bucket (1: the same targets as `nll_by_position`)
    """
    _check_buckets(buckets, tokens)
    nll = torch.full((len(tokens), tokens.shape[1] - 1), torch.nan)
    for target in sorted({t for low, high in buckets for t in range(low, high, stride)}):
        contexts, truth = tokens[:, max(0, target - window) : target], tokens[:, target]
        for rows in torch.arange(len(tokens)).split(batch):
            logits = logits_of(model, contexts[rows])[:, -1].float()
            nll[rows, target - 1] = F.cross_entropy(logits, truth[rows], reduction="none").cpu()
    return _average(nll, buckets)


def evaluate_policies(
    model: nn.Module,
    tokens: Tensor,
    window: int,
    n_global: int,
    buckets: Sequence[Bucket],
    *,
    policies: Sequence[str] = POLICIES,
    batch: int = 8,
) -> dict[str, dict[Bucket, float]]:
    """`nll_by_position` of the same tokens by policy: n_local = d_max = window, factor = T / window."""
    factor = max(1.0, tokens.shape[1] / window)
    results = {}
    for name in policies:
        # StreamingLLM counts its starting tokens into the window (its own default)
        local = None if name == "vanilla" else window - n_global if name == "sink" else window
        with extend_context(model, n_local=local, n_global=n_global, policy=name, factor=factor) as extended:
            results[name] = nll_by_position(extended, tokens, buckets, batch=batch)
    return results


def _average(nll: Tensor, buckets: Sequence[Bucket]) -> dict[Bucket, float]:
    return {(low, high): float(nll[:, low - 1 : high - 1].nanmean()) for low, high in buckets}


def _check_buckets(buckets: Sequence[Bucket], tokens: Tensor) -> None:
    for low, high in buckets:
        if not 1 <= low < high <= tokens.shape[1]:
            raise InputError(
                f"bucket ({low}, {high})",
                f"does not fit sequences of {tokens.shape[1]} tokens",
                "Positions are 1 (the second token) up to the length.",
            )
