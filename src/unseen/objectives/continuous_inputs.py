"""What can be added to in a network's inputs: floating-point inputs, or the embeddings of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

STRUCTURE = ("mask", "adjacency", "attention_mask")
"""Entries of input dicts that say which values there are: a change of them would make other inputs of them."""
EMBEDDINGS = "embeddings"
"""The name by which `changed_inputs` tells that a value is the embeddings of tokens."""


@contextmanager
def changed_inputs(
    network: nn.Module, batch: Batch, change: Callable[[str, Tensor], Tensor]
) -> Iterator[Batch]:
    """Inside, evaluate the given batch: each continuous input is what `change(name, value)` makes of it.

    These are the floating-point inputs (one tensor has the name "x"). When there is none (token ids), it is the
    output of the network's first `nn.Embedding`, by convention that of the tokens. Raises `InputError` for
    inputs with neither.
    """
    inputs = batch.x if isinstance(batch.x, dict) else {"x": batch.x}
    names = [n for n, v in inputs.items() if n not in STRUCTURE and v.is_floating_point()]
    if names:
        changed = {**inputs, **{name: change(name, inputs[name]) for name in names}}
        yield replace(batch, x=changed if isinstance(batch.x, dict) else changed["x"])
        return
    embedding = next((m for m in network.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise InputError(
            "a change of the inputs",
            f"has nothing to act on: no input is of floating point ({', '.join(inputs)}), none is embedded",
            "Choose a method that leaves inputs alone, such as the reference previous of TRAM.",
        )
    hook = embedding.register_forward_hook(lambda module, arguments, output: change(EMBEDDINGS, output))
    try:
        yield batch
    finally:
        hook.remove()


@contextmanager
def input_noise(network: nn.Module, batch: Batch, sigma: float, seed: int) -> Iterator[Batch]:
    """Inside, evaluate the given batch: N(0, sigma^2) is added to its continuous inputs (`changed_inputs`).

    The noise depends on `seed` and the step alone.
    """
    device = batch.domain.device
    generator = torch.Generator(device).manual_seed(derive_seed(seed, batch.step))

    def noisy(name: str, value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, device=device, dtype=value.dtype)
        return value + sigma * noise

    with changed_inputs(network, batch, noisy) as noised:
        yield noised
