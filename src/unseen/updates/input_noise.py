"""Gaussian noise on what a network reads: on its inputs, or on the embeddings of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

STRUCTURE = ("mask", "adjacency", "attention_mask")
"""Entries of input dicts that say which values there are: noise on them would make other inputs of them."""


@contextmanager
def input_noise(network: nn.Module, batch: Batch, sigma: float, seed: int) -> Iterator[Batch]:
    """Inside, evaluate the given batch: N(0, sigma^2) is added to its floating-point inputs.

    When it has none (token ids), noise is added to the output of the network's first `nn.Embedding`, by
    convention that of the tokens. The noise depends on `seed` and the step alone.
    """
    inputs = batch.x if isinstance(batch.x, dict) else {"x": batch.x}
    names = [n for n, v in inputs.items() if n not in STRUCTURE and v.is_floating_point()]
    device = next(iter(inputs.values())).device
    generator = torch.Generator(device).manual_seed(derive_seed(seed, batch.step))

    def noisy(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value + sigma * noise

    if names:
        changed = {**inputs, **{name: noisy(inputs[name]) for name in names}}
        yield replace(batch, x=changed if isinstance(batch.x, dict) else changed["x"])
        return
    embedding = next((m for m in network.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise InputError(
            "noise on the inputs",
            f"has nothing to act on: no input is of floating point ({', '.join(inputs)}), none is embedded",
            "Choose another reference, such as previous.",
        )
    hook = embedding.register_forward_hook(lambda module, arguments, output: noisy(output))
    try:
        yield batch
    finally:
        hook.remove()
