"""Run a trained decoder on sequences longer than its training window, without training and reversibly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unseen.errors import InputError, UnseenWarning
from unseen.sequences.attention_policy import AttentionPolicy, attention_policy
from unseen.sequences.language_model import DecoderLM


@contextmanager
def extend_context(
    model: Any,
    n_local: int | None = None,
    n_global: int = 10,
    d_max: int | None = None,
    topk: int | None = None,
    *,
    policy: str = "lm-infinite",
    factor: float | None = None,
    topk_distance: int | None = None,
    topk_first_layer: int = 4,
) -> Iterator[Any]:
    """Within the context the model attends under another policy; on exit it is exactly what it was.

    with extend_context(model) as model:
        model.generate(prompt, max_new_tokens=10_000)

    model      a `DecoderLM`, or a RoPE decoder of `transformers` (Llama, Qwen, Mistral, GPT-NeoX, ...)
    n_local    visible distances are 0 .. n_local - 1 (default: the window that the model was trained on)
    n_global   starting tokens that stay visible; 10 to 100 behave alike in the paper
    d_max      ceiling of distances (default: n_local)
    topk       middle tokens that the last query also sees in layers >= topk_first_layer, for retrieval
               (paper: 5); the cache then keeps everything, and prompts come one at a time
    policy     "lm-infinite" or an alternative of `attention_policy` for comparison
    factor     target length / window, for "interpolation" and "ntk"

    Generation keeps n_global + n_local rows of keys and values (and the longest left padding). What has left
    the window is forgotten: perplexity stays flat, memory does not grow. A cache filled outside the context
    cannot be continued inside it, nor the other way round.

    Raises InputError on models without relative positions, n_global < 0, padding that is not at the left,
    top-k for a batch of prompts; warns (UnseenWarning) when n_local exceeds the trained window. Source:
    LM-Infinite (arXiv 2308.16137).
    """
    if isinstance(model, DecoderLM):
        window, layers, extended = model.window, len(model.blocks), _extended_decoder
    elif hasattr(getattr(model, "config", None), "get_text_config"):
        from unseen.sequences.transformers_context import extended, trained_window

        window, layers = trained_window(model), model.config.get_text_config().num_hidden_layers
    else:
        raise InputError(
            f"model {type(model).__name__}",
            "is of no known kind",
            "Give a DecoderLM or a transformers decoder.",
        )
    chosen = attention_policy(
        policy,
        window,
        n_local=n_local,
        n_global=n_global,
        d_max=d_max,
        factor=factor,
        topk=topk,
        topk_distance=topk_distance,
        topk_first_layer=topk_first_layer,
    )
    if topk is not None and topk_first_layer >= layers:
        warnings.warn(
            f"topk acts from layer {topk_first_layer} on; in a model of {layers} layers nothing is retrieved",
            UnseenWarning,
            stacklevel=3,
        )
    with extended(model, chosen):
        yield model


@contextmanager
def _extended_decoder(model: DecoderLM, policy: AttentionPolicy) -> Iterator[None]:
    policy.encoding(model.encoding)  # a policy that the encoding cannot follow fails here, before any change
    previous, model.policy = model.policy, policy
    try:
        yield
    finally:
        model.policy = previous
