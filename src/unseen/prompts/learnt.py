"""Prompts whose context words are vectors learnt by gradient: one context for all classes (CoOp), or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unseen.prompts.text import PromptableText, Tokens, encode_prompts, initial_context

CHUNK = 512
"""Prompts encoded at once."""


class LearntPrompts(nn.Module):
    """[v_1..v_L][name]: context vectors v shared by all classes (CoOp: Zhou et al. 2022, arXiv 2109.01134).

    context  words whose embeddings v starts from, or L for draws of N(0, 0.02^2)
    The text encoder is used, not owned: it is no part of this module's parameters or state.
    """

    def __init__(self, text: PromptableText, context: str | int = "a photo of a", *, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.context = nn.Parameter(initial_context(text, context, generator=generator))
        self._text = (text,)  # in a tuple: torch would register a module

    @property
    def text(self) -> PromptableText:
        return self._text[0]

    def forward(self, tokens: Tokens) -> Tensor:
        """(N, D) features of length 1 of the names' tokens, with gradients to the context."""
        return encode_prompts(self.text, tokens, self.context, chunk=CHUNK)

    @torch.no_grad()
    def encode(self, names: Sequence[str], *, negative: bool = False) -> Tensor:
        """(len(names), D) features of length 1, without gradient; negative names have the same context."""
        return self(self.text.embed_tokens(names))


class DistributionAwarePrompts(nn.Module):
    """Two contexts: [v_1..v_L][name] for classes, [w_1..w_L][name] for negative names.

    n_ctx   L, drawn from N(0, 0.02^2), or words that both contexts start from
    shared  one context for both: the ablation
    LAPT: Zhang et al. 2024, arXiv 2407.08966, section 3.3.
    """

    def __init__(
        self, text: PromptableText, n_ctx: int | str = 4, *, shared: bool = False, seed: int = 0
    ):  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.context = nn.Parameter(initial_context(text, n_ctx, generator=generator))
        if shared:
            self.negative_context = self.context
        else:
            self.negative_context = nn.Parameter(initial_context(text, n_ctx, generator=generator))
        self._text = (text,)

    @property
    def text(self) -> PromptableText:
        return self._text[0]

    def forward(self, known: Tokens, negative: Tokens) -> Tensor:
        """(K + M, D) features of length 1 of class names, then negative names, with gradients to the contexts."""
        return torch.cat([
            encode_prompts(self.text, known, self.context, chunk=CHUNK),
            encode_prompts(self.text, negative, self.negative_context, chunk=CHUNK),
        ])  # fmt: skip

    @torch.no_grad()
    def encode(self, names: Sequence[str], *, negative: bool = False) -> Tensor:
        """(len(names), D) features of length 1, without gradient. Computed anew at every call: never stale."""
        context = self.negative_context if negative else self.context
        return encode_prompts(self.text, self.text.embed_tokens(names), context, chunk=CHUNK)
