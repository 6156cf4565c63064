"""Relative positions in attention: rotary embedding (RoPE) and linear biases (ALiBi).

Both expose `score(q, k, q_position, k_position)`: attention logits of queries and *un-rotated* keys for any
positions, and `join`, which prepares the same for a fused kernel. Length-generalization methods then only
choose which positions to pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError

Reading = tuple[Tensor, Tensor, Tensor]
"""Un-rotated keys (..., K, d_h), positions of the queries (..., T), positions of these keys (..., K)."""


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding in the half-split layout of Llama and GPT-NeoX (Su et al. 2021, arXiv 2104.09864).

    inverse_frequencies  (r / 2,) radians per position; the first r of the d_h head dimensions are rotated
    """

    inverse_frequencies: Tensor

    @classmethod
    def default(cls, dimension: int, base: float = 10000.0) -> Rotary:
        """All of `dimension` (even) rotated with frequencies base^(-2i / dimension)."""
        if dimension % 2:
            raise InputError("head dimension", f"is {dimension}", "Rotary embedding needs an even number.")
        return cls(base ** (-torch.arange(0, dimension, 2, dtype=torch.float32) / dimension))

    def rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate x (..., T, d_h) by `position`, integers or floats broadcastable to (..., T)."""
        frequencies = self.inverse_frequencies.to(x.device, torch.float32)
        angle = position.to(x.device, torch.float32)[..., None] * frequencies
        cos, sin = angle.cos(), angle.sin()  # in float32: half precision cannot tell far positions apart
        half = frequencies.numel()
        first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return torch.cat([rotated.to(x.dtype), rest], dim=-1)

    def score(self, q: Tensor, k: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        """Logits (..., T, K) of q (..., T, d_h) and un-rotated k (..., K, d_h); no scaling is applied."""
        return self.rotate(q, q_position) @ self.rotate(k, k_position).mT

    def join(self, q: Tensor, keys: list[Reading]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and bias whose one inner product gives the logits of all `keys`, side by side.

        Each reading gets features of its own, which are zero in the keys of the others.
        """
        width, last = q.shape[-1], len(keys) - 1
        joined = [
            F.pad(self.rotate(k, k_position), (i * width, (last - i) * width))
            for i, (k, _, k_position) in enumerate(keys)
        ]
        rotated = [self.rotate(q, q_position) for _, q_position, _ in keys]
        return torch.cat(rotated, dim=-1), torch.cat(joined, dim=-2), q.new_zeros(())

    def interpolated(self, factor: float) -> Rotary:
        """Positions divided by `factor` (position interpolation, Chen et al. 2023, arXiv 2306.15595)."""
        return Rotary(self.inverse_frequencies / factor)

    def rebased(self, factor: float) -> Rotary:
        """NTK-aware scaling, base * factor^(d / (d - 2)): only the lowest frequency is divided by factor."""
        pairs = self.inverse_frequencies.numel()
        exponent = torch.arange(pairs, device=self.inverse_frequencies.device) / max(pairs - 1, 1)
        return Rotary(self.inverse_frequencies * factor**-exponent)


@dataclass(frozen=True)
class Alibi:
    """Linear biases: a key at distance D gets -slope * D (Press et al. 2022, arXiv 2108.12409).

    slopes  (H,), one per query head
    """

    slopes: Tensor

    @classmethod
    def default(cls, heads: int) -> Alibi:
        """The paper's slopes: 2^(-8/n), 2^(-16/n), ... for n heads (n no power of two: odd ones of 2n)."""
        power = 1 << (heads.bit_length() - 1)
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
        return cls(torch.tensor(slopes))

    def score(self, q: Tensor, k: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        """Logits (..., H, T, K) of q (..., H, T, d_h) and k (..., H, K, d_h); no scaling is applied."""
        distance = q_position[..., :, None] - k_position[..., None, :]
        return q @ k.mT - (self.slopes.to(q.device)[:, None, None] * distance).to(q.dtype)

    def join(self, q: Tensor, keys: list[Reading]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and bias whose one inner product gives the logits of all `keys`, side by side."""
        distances = [
            q_position[..., :, None] - k_position[..., None, :] for _, q_position, k_position in keys
        ]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in distances))
        distance = torch.cat([part.expand(*shape, -1) for part in distances], dim=-1)
        bias = -self.slopes.to(q.device)[:, None, None] * distance
        return q, torch.cat([k for k, _, _ in keys], dim=-2), bias.to(q.dtype)

    def interpolated(self, factor: float) -> Alibi:
        """Distances divided by `factor`."""
        return Alibi(self.slopes / factor)

    def rebased(self, factor: float) -> Alibi:
        raise InputError(
            "policy 'ntk'",
            "changes the base of rotary frequencies, but the model uses ALiBi",
            "Take 'interpolation' or 'lm-infinite'.",
        )


Encoding = Rotary | Alibi
