"""A small decoder-only language model whose attention policy can be changed at inference time."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.attention_policy import AttentionPolicy
from unseen.sequences.policy_attention import attend, left_padding
from unseen.sequences.positions import Alibi, Encoding, Rotary
from unseen.sequences.streaming_cache import StreamingCache


class CausalSelfAttention(nn.Module):
    """Multi-head (or grouped-query) attention that hands un-rotated keys to the cache and to `attend`."""

    def __init__(self, width: int, heads: int, kv_heads: int, layer: int):
        super().__init__()
        self.heads, self.kv_heads, self.layer = heads, kv_heads, layer
        self.head_dimension = width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head_dimension, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head_dimension, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        policy: AttentionPolicy,
        encoding: Encoding,
        cache: StreamingCache | None,
        padding: Tensor | None,
    ) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dimension)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        length = x.shape[1]
        if cache is not None:
            length += cache.length
            k, v = cache.update(self.layer, k, v)
        y = attend(policy, q, k, v, encoding, padding=padding, length=length, layer=self.layer)
        return self.output(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual block: attention, then a GELU network of four times the width."""

    def __init__(self, width: int, heads: int, kv_heads: int, layer: int):
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, kv_heads, layer)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, *context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), *context)
        return x + self.feedforward(self.feedforward_norm(x))


class DecoderLM(nn.Module):
    """Pre-norm decoder with relative positions.

    vocabulary  number of tokens (256 for bytes)
    window      tokens per training sequence: the longest distance that it learns is window - 1
    positions   "rope" or "alibi"
    kv_heads    key/value heads, a divisor of `heads` (grouped-query attention); None: as many
    seed        of the initial weights
    policy      attribute, the current `AttentionPolicy`; change it with `extend_context`
    """

    def __init__(
        self,
        vocabulary: int = 256,
        *,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        window: int = 64,
        positions: Literal["rope", "alibi"] = "rope",
        kv_heads: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads:
            raise InputError(
                "DecoderLM",
                f"has width {width}, {heads} heads, {kv_heads} key/value heads",
                "Each must divide the one before.",
            )
        if positions not in ("rope", "alibi"):
            raise InputError(
                "positions",
                f"is {positions!r}",
                "Give relative positions: 'rope' or 'alibi'.",
            )
        self.window, self.positions, self.heads = window, positions, heads
        self.policy = AttentionPolicy()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, layer) for layer in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.encoding: Encoding = (
            Rotary.default(width // heads) if positions == "rope" else Alibi.default(heads)
        )
        self._initialize(torch.Generator().manual_seed(seed), layers)

    def _initialize(self, generator: torch.Generator, layers: int) -> None:
        """Normal weights of scale 0.02, smaller where a layer writes to the residual stream (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("output.weight", "feedforward.2.weight"))
                std = 0.02 / (2 * layers) ** 0.5 if writes else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Tensor, *, cache: StreamingCache | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Next-token logits (B, T, vocabulary) of tokens (B, T) int64.

        cache         from `new_cache`; the tokens follow those that it has seen
        padding_mask  (B, T), nonzero for real tokens, padding at the left; with a cache: see `new_cache`.
                      Outputs at padding tokens are meaningless.
        """
        if cache is not None and padding_mask is not None:
            raise InputError("padding_mask", "was given with a cache", "Give it to new_cache.")
        padding = left_padding(padding_mask) if padding_mask is not None else None
        padding = cache.padding if cache is not None else padding
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.policy, self.encoding, cache, padding)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.head(self.norm(x))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood (nats per token) of tokens[:, 1:] given those before them."""
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def new_cache(self, padding_mask: Tensor | None = None) -> StreamingCache:
        """An empty key/value cache for the current policy; padding_mask (B, T) is the prompt's."""
        return StreamingCache(self.policy, None if padding_mask is None else left_padding(padding_mask))

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Prompt (B, T) and `new_tokens` more, (B, T + new_tokens): greedy at temperature 0, else sampled."""
        cache = self.new_cache(padding_mask)
        tokens, latest = prompt, prompt
        for _ in range(new_tokens):
            logits = self(latest, cache=cache)[:, -1]
            if temperature > 0:
                latest = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            else:
                latest = logits.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, latest], dim=1)
        return tokens
