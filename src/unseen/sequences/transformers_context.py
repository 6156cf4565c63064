"""Attention policies inside RoPE decoders of `transformers`, without replacing their attention modules.

Every such decoder asks one rotary module for cosines and sines, applies them to queries and keys, stores the
keys, and calls an attention function looked up by name. Inside the context the rotary module answers "no
rotation", so the model's own code (projections, query norms, partial rotation, cache) hands *un-rotated*
queries and keys to our attention function, which applies the positions itself.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, MissingExtra
from unseen.sequences.attention_policy import AttentionPolicy
from unseen.sequences.policy_attention import attend, left_padding, starting_rows
from unseen.sequences.positions import Rotary

# Frequencies of these types depend neither on the length of the input nor on an extra temperature.
FIXED_ROPE_TYPES = ("default", "linear", "llama3")
_serial = itertools.count()


@dataclass(frozen=True)
class Layout:
    """What the mask function tells the attention function: tokens seen in all, left padding of each row."""

    length: int
    padding: Tensor | None


def trained_window(model: Any) -> int:
    """Longest sequence of the model's training, from its config; InputError without rotary positions."""
    rotary_module(model)
    return int(model.config.get_text_config().max_position_embeddings)


@contextmanager
def extended(model: Any, policy: AttentionPolicy) -> Iterator[None]:
    """Let a transformers decoder attend under `policy`; everything is undone on exit."""
    if policy.name == "vanilla":
        yield
        return
    rotary, config = rotary_module(model), model.config.get_text_config()
    encoding = Rotary(rotary.inv_freq.detach().clone())
    with ExitStack() as stack:
        name = f"unseen_{policy.name}_{next(_serial)}"
        _register(stack, name, _attention_function(policy, encoding))
        stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = name
        _replace(stack, rotary, "forward", _no_rotation(2 * rotary.inv_freq.numel()))
        if policy.cache_window is not None and hasattr(model, "_prepare_cache_for_generation"):
            original = model._prepare_cache_for_generation
            prepare = _streaming_preparation(original, policy, policy.cache_window, config.num_hidden_layers)
            _replace(stack, model, "_prepare_cache_for_generation", prepare)
        yield


def rotary_module(model: Any) -> Any:
    """The one module that makes the model's cosines and sines; InputError if the model cannot be extended."""
    name, config = type(model).__name__, model.config.get_text_config()
    found = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not found:
        raise InputError(
            f"model {name}",
            "has no rotary embedding: learned absolute positions, other biases, or no positions at all",
            "Distances can only be limited in decoders with RoPE, such as Llama, Qwen or GPT-NeoX.",
        )
    windowed = getattr(config, "sliding_window", None) or any(
        kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()
    )
    if len(found) > 1 or windowed:
        raise InputError(
            f"model {name}",
            "mixes kinds of attention or already has a sliding window",
            "Give a decoder whose layers all attend to everything.",
        )
    rotary = found[0]
    if "forward" in vars(rotary) and getattr(rotary.forward, "unseen", False):
        raise InputError(f"model {name}", "is already extended", "Leave the first context before the next.")
    kind = getattr(rotary, "rope_type", "default")
    if kind not in FIXED_ROPE_TYPES:
        raise InputError(
            f"model {name}",
            f"has rotary frequencies of type {kind!r}",
            f"Supported: {', '.join(FIXED_ROPE_TYPES)}.",
        )
    if not _rotates_halves(rotary):
        raise InputError(
            f"model {name}",
            "does not rotate the two halves of a head against each other",
            "Interleaved rotary layouts are not supported.",
        )
    return rotary


def _rotates_halves(rotary: Any) -> bool:
    """Compare the model's own rotation with ours on an example."""
    apply = getattr(sys.modules[type(rotary).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        return False
    frequencies = rotary.inv_freq.detach()
    width = 2 * frequencies.numel()
    x = torch.linspace(-1, 1, 3 * width, device=frequencies.device).view(1, 1, 3, width)
    position = torch.arange(3, device=x.device)
    try:
        theirs, _ = apply(x, x, *rotary(x, position[None]))
    except (TypeError, RuntimeError, ValueError):  # another signature is another kind of rotation
        return False
    return theirs.shape == x.shape and torch.allclose(
        theirs, Rotary(frequencies).rotate(x, position), atol=1e-4
    )


def _attention_function(policy: AttentionPolicy, encoding: Rotary) -> Callable[..., tuple[Tensor, None]]:
    policy.encoding(encoding)

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if not isinstance(attention_mask, Layout):
            raise InputError(
                "attention_mask", "is 4-dimensional", "Give a (batch, length) mask of real tokens."
            )
        if dropout:
            raise InputError("model", "is training with attention dropout", "Call model.eval() first.")
        for option in ("softcap", "s_aux", "position_bias"):
            if options.get(option) is not None:
                raise InputError("model", f"modifies attention logits ({option})", "It cannot be extended.")
        output = attend(
            policy,
            query,
            key,
            value,
            encoding,
            padding=attention_mask.padding,
            length=attention_mask.length,
            layer=module.layer_idx,
            scale=scaling,
        )
        return output.transpose(1, 2).contiguous(), None

    return attention


def _layout(
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    attention_mask: Tensor | None = None,
    mask_function: Callable | None = None,
    **_: Any,
) -> Layout:
    """Takes the place of transformers' mask creation; keyword arguments are those of its mask functions."""
    from transformers.masking_utils import causal_mask_function

    length = int(q_offset) + q_length
    if mask_function is not causal_mask_function:
        raise InputError(
            "position_ids", "start again within a row (packed sequences)", "Give one text a row."
        )
    if kv_length != length:
        raise InputError("past_key_values", "is a static cache", "Use a dynamic cache or none.")
    if attention_mask is None:
        return Layout(length, None)
    if attention_mask.shape[1] != length:
        raise InputError(
            "attention_mask",
            f"covers {attention_mask.shape[1]} tokens of {length}",
            "It must cover all tokens seen so far, cached ones included.",
        )
    return Layout(length, left_padding(attention_mask))


def _no_rotation(width: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, width)
        return x.new_ones(shape), x.new_zeros(shape)

    forward.unseen = True  # type: ignore[attr-defined]
    return forward


CACHE_NAMES = ("past_key_values", "cache")
"""What `generate` calls its cache: the second since transformers 5.24."""


def _streaming_preparation(
    original: Callable, policy: AttentionPolicy, last: int, layers: int
) -> Callable[..., None]:
    """`generate` makes its cache here: give it ours where it would have made its default one."""
    from transformers.cache_utils import DynamicCache

    from unseen.sequences.transformers_cache import streaming_cache

    def prepare(generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **named: Any) -> None:
        given = any(model_kwargs.get(name) is not None for name in CACHE_NAMES)
        original(generation_config, model_kwargs, *rest, **named)
        for name in CACHE_NAMES:
            made = model_kwargs.get(name)
            if not given and type(made) is DynamicCache and not made.offloading:
                mask = model_kwargs.get("attention_mask")
                first = starting_rows(policy, None if mask is None else left_padding(mask))
                model_kwargs[name] = streaming_cache(layers, first, last)

    return prepare


def _register(stack: ExitStack, name: str, attention: Callable) -> None:
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        raise MissingExtra("extend_context for transformers", "language") from error
    for interface, function in ((AttentionInterface, attention), (AttentionMaskInterface, _layout)):
        interface.register(name, function)
        stack.callback(interface._global_mapping.pop, name)


def _replace(stack: ExitStack, owner: Any, attribute: str, value: Any) -> None:
    """Shadow a method on one object until the stack unwinds."""
    if attribute in vars(owner):
        stack.callback(setattr, owner, attribute, vars(owner)[attribute])
    else:
        stack.callback(delattr, owner, attribute)
    setattr(owner, attribute, value)
