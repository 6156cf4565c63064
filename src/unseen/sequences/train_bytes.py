"""Training of a small byte-level language model: AdamW with a cosine schedule, seeded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError, TrainingDiverged
from unseen.sequences.byte_corpus import standard_library_corpus
from unseen.sequences.language_model import DecoderLM


def train_byte_model(
    seed: int,
    steps: int = 1500,
    window: int = 64,
    *,
    batch: int = 32,
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
    positions: Literal["rope", "alibi"] = "rope",
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    warmup: int = 50,
    corpus: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> DecoderLM:
    """A `DecoderLM` of bytes trained on random sequences of `window` bytes, returned in evaluation mode.

    seed      of the initial weights and of the sequences drawn
    corpus    (N,) int64 bytes; None: the training part of the standard library's sources
    progress  called with (step, loss) after each step

    Raises TrainingDiverged when the loss is no longer finite.
    """
    data = standard_library_corpus().train if corpus is None else corpus
    if len(data) <= window + 1:
        raise InputError(
            "corpus", f"has {len(data)} bytes", f"Give more than the {window + 1} of one sequence."
        )
    model = DecoderLM(
        256, width=width, layers=layers, heads=heads, window=window, positions=positions, seed=seed
    ).to(device)
    data = data.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_schedule(step, steps, warmup))
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(window + 1, device=device)
    for step in range(steps):
        starts = torch.randint(len(data) - window, (batch, 1), generator=generator).to(device)
        loss = model.loss(data[starts + offsets])
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {step}: lower learning_rate {learning_rate}"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, loss.item())
    return model.eval()


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear from 0 over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
