"""CLIP models of transformers and open_clip as encoders whose prompts can be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder, OpenClipDualEncoder, TransformersDualEncoder
from unseen.prompts.text import PromptableEncoder, Tokens

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Texts -> token numbers (N, T), padded at the end, and lengths (N,)."""


def promptable(clip: DualEncoder) -> PromptableEncoder:
    """A dual encoder of transformers or open_clip as one that takes token embeddings; others that do pass through.

    `promptable(dual_encoder("transformers:openai/clip-vit-base-patch16"))`. For open_clip, text towers of its own
    (`CLIP`, `CustomTextCLIP`). Raises `InputError` for an encoder of neither.
    """
    if isinstance(clip, PromptableEncoder):
        return clip
    if isinstance(clip, TransformersDualEncoder):
        embedding = clip.model.text_model.embeddings.token_embedding
        starts = 0 if clip.padding == "max_length" else 1  # SigLIP opens its texts with nothing
        return HookedEncoder(clip, embedding, _transformers_tokens(clip), clip.tokens, starts)
    if isinstance(clip, OpenClipDualEncoder):
        tower = getattr(clip.model, "text", clip.model)
        if hasattr(tower, "token_embedding"):
            limit = len(tower.positional_embedding)
            return HookedEncoder(clip, tower.token_embedding, _open_clip_tokens(clip), limit, 1)
    raise InputError(
        f"encoder {type(clip).__name__}",
        "takes no token embeddings, which learnt prompts are",
        "Give it embed_tokens and encode_embeddings, or use a CLIP of transformers or open_clip.",
    )


class HookedEncoder:
    """Learnt vectors enter where the model looks its token embeddings up: masks, positions, pooling stay its own.

    embedding  the layer that the model looks token numbers up in
    limit      tokens that the model reads
    starts     tokens that open every text; one closes it
    """

    def __init__(
        self, clip: DualEncoder, embedding: nn.Module, tokenize: Tokenize, limit: int, starts: int
    ):  # fmt: skip
        self.clip, self.limit, self.starts = clip, limit, starts
        self._embedding, self._tokenize = embedding, tokenize
        self.logit_scale = clip.logit_scale

    @property
    def width(self) -> int:
        return next(self._embedding.parameters()).shape[1]

    def encode_image(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.clip.encode_text(texts)

    @torch.no_grad()
    def embed_tokens(self, texts: Sequence[str]) -> Tokens:
        ids, lengths = self._tokenize(list(texts))
        device = next(self._embedding.parameters()).device
        ids = ids.to(device)
        return Tokens(ids, self._embedding(ids), lengths.to(device), self.starts, ends=1)

    def encode_embeddings(self, tokens: Tokens) -> Tensor:
        tokens = tokens.upto(self.limit)
        with _replaced_output(self._embedding, tokens.vectors):
            return self._encode_ids(tokens.ids)

    def _encode_ids(self, ids: Tensor) -> Tensor:
        if isinstance(self.clip, OpenClipDualEncoder):
            return self.clip.model.encode_text(ids)
        found = self.clip.model.get_text_features(input_ids=ids)  # type: ignore[attr-defined]
        return found if isinstance(found, Tensor) else found.pooler_output  # transformers 4, 5


def _transformers_tokens(clip: TransformersDualEncoder) -> Tokenize:
    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        found = clip.tokenizer(
            texts,
            padding=clip.padding,
            max_length=clip.tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"].sum(1)

    return tokenize


def _open_clip_tokens(clip: OpenClipDualEncoder) -> Tokenize:
    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = clip.tokenizer(texts)
        return ids, (ids != 0).sum(1)  # open_clip pads with zero

    return tokenize


@contextmanager
def _replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()
