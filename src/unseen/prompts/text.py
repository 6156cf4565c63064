"""Texts as token embeddings that learnt context vectors can stand among: what every prompt learner needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder

PLACEHOLDER = 0
"""Token number of a learnt vector: below every end token, so that encoders which look for that still find it."""


@dataclass(frozen=True)
class Tokens:
    """N texts of at most T tokens, padded at the end.

    ids      (N, T) int64 token numbers
    vectors  (N, T, W) their embeddings, before positions are added
    lengths  (N,) int64, how many tokens are no padding
    starts   tokens that open every text (CLIP: 1): context goes behind them
    ends     tokens that close every text (CLIP: 1)
    """

    ids: Tensor
    vectors: Tensor
    lengths: Tensor
    starts: int = 0
    ends: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def present(self) -> Tensor:
        """(N, T) booleans: what is no padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths.unsqueeze(1)

    def take(self, rows: Tensor | slice) -> Tokens:
        return replace(
            self, ids=self.ids[rows], vectors=self.vectors[rows], lengths=self.lengths[rows]
        )  # fmt: skip

    def upto(self, limit: int) -> Tokens:
        """At most `limit` tokens each; raises when that would cut more than padding."""
        if len(self) and int(self.lengths.max()) > limit:
            raise InputError(
                "prompts",
                f"have up to {int(self.lengths.max())} tokens, but the encoder reads {limit}",
                "Give shorter names or fewer context vectors.",
            )
        return replace(self, ids=self.ids[:, :limit], vectors=self.vectors[:, :limit])


@runtime_checkable
class PromptableText(Protocol):
    """A text encoder that also takes token embeddings, with gradients through them.

    `unseen.prompts.encoders` makes one of a CLIP of transformers or open_clip.
    """

    @property
    def width(self) -> int:
        """W, the size of token embeddings."""
        ...

    def embed_tokens(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, start and end tokens included."""
        ...

    def encode_embeddings(self, tokens: Tokens) -> Tensor:
        """(N, D) embeddings of texts whose token vectors may be learnt ones; their length is free."""
        ...


@runtime_checkable
class PromptableEncoder(DualEncoder, PromptableText, Protocol):
    """A dual encoder whose prompts can be learnt."""


def with_context(tokens: Tokens, context: Tensor) -> Tokens:
    """The texts with context vectors (L, W) behind their start tokens: [start][v_1..v_L][name][end]."""
    count, length = len(tokens), len(context)
    here = context.to(tokens.vectors).unsqueeze(0).expand(count, -1, -1)
    marks = tokens.ids.new_full((count, length), PLACEHOLDER)
    cut = tokens.starts
    return replace(
        tokens,
        ids=torch.cat([tokens.ids[:, :cut], marks, tokens.ids[:, cut:]], 1),
        vectors=torch.cat([tokens.vectors[:, :cut], here, tokens.vectors[:, cut:]], 1),
        lengths=tokens.lengths + length,
    )


def encode_prompts(
    text: PromptableText, tokens: Tokens, context: Tensor, *, chunk: int | None = None
) -> Tensor:
    """(N, D) float32 features of length 1 of texts behind context vectors (L, W), with gradients to these.

    chunk  how many prompts are encoded at once; with gradients, the rest is computed again in the backward pass
           instead of being kept (2,000 prompts of 77 tokens would fill a GPU)
    """
    if chunk is None or len(tokens) <= chunk:
        return _encode(text, tokens, context)
    parts = [tokens.take(slice(first, first + chunk)) for first in range(0, len(tokens), chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([_encode(text, part, context) for part in parts])
    from torch.utils.checkpoint import checkpoint

    return torch.cat([checkpoint(_encode, text, part, context, use_reentrant=False) for part in parts])


def _encode(text: PromptableText, tokens: Tokens, context: Tensor) -> Tensor:
    features = text.encode_embeddings(with_context(tokens, context))
    return normalize(features.float(), dim=-1)  # half precision loses what tells near prompts apart


def initial_context(
    text: PromptableText, context: str | int, *, generator: torch.Generator, scale: float = 0.02
) -> Tensor:
    """(L, W) float32 context vectors to start from: the words of a text, or L draws of N(0, scale^2).

    Raises `InputError` for an encoder that takes no token embeddings, an empty text, and L below 1.
    """
    if not isinstance(text, PromptableText):
        raise InputError(
            f"encoder {type(text).__name__}",
            "takes no token embeddings, which learnt prompts are",
            "Make it take them: unseen.prompts.promptable(encoder).",
        )
    if isinstance(context, str):
        if not context.strip():
            raise InputError("context", "is an empty text", 'Give words such as "a photo of a", or a number.')
        tokens = text.embed_tokens([context])
        inside = slice(tokens.starts, int(tokens.lengths[0]) - tokens.ends)
        return tokens.vectors[0, inside].detach().float().clone()
    if context < 1:
        raise InputError("context", f"is {context} vectors", "Give a number from 1, or words.")
    return torch.randn(context, text.width, generator=generator) * scale


def check_names(subject: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; raises for a single string, none, an empty name, and names that come twice."""
    if isinstance(names, str) or not names:
        raise InputError(subject, f"is {names!r}", "Give a list of at least one name.")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(subject, "holds an empty name", "Give words for every class.")
    counts = Counter(names)
    twice = sorted({name for name in names if counts[name] > 1})
    if twice:
        raise InputError(subject, f"holds {twice[0]!r} more than once", "Give every name once.")
    return tuple(names)
