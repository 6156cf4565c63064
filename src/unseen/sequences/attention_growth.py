"""How time and memory of an attention implementation grow with the length of the text."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unseen.sequences.lambda_attention import lambda_attention


@dataclass(frozen=True)
class Growth:
    """Cost at each length, and the slopes of log cost over log length: 1 is linear, 2 quadratic.

    seconds  fastest of the repeats
    bytes    of all tensors that one call allocates (a bound on its memory, the same on every machine)
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def time_slope(self) -> float:
        return _slope(self.lengths, self.seconds)

    @property
    def memory_slope(self) -> float:
        return _slope(self.lengths, self.bytes)


@torch.no_grad()
def measure_growth(
    method: Literal["block", "dense"],
    lengths: Sequence[int] = (512, 1024, 2048, 4096),
    *,
    n_local: int = 64,
    n_global: int = 10,
    heads: int = 4,
    head_dimension: int = 16,
    repeats: int = 3,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Growth:
    """Cost of `lambda_attention` by `method` on random (1, heads, length, head_dimension) tensors."""
    generator = torch.Generator().manual_seed(seed)
    seconds, allocated = [], []
    for length in lengths:
        q, k, v = torch.randn(3, 1, heads, length, head_dimension, generator=generator).to(device)

        def call(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            lambda_attention(q, k, v, n_local=n_local, n_global=n_global, d_max=n_local, method=method)
            if q.is_cuda:
                torch.cuda.synchronize(q.device)

        with AllocatedBytes() as counter:  # also warms up
            call()
        allocated.append(counter.total)
        fastest = math.inf
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            fastest = min(fastest, time.perf_counter() - begin)
        seconds.append(fastest)
    return Growth(tuple(lengths), tuple(seconds), tuple(allocated))


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of every new tensor storage made within the context; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {_storage(x): x for x in tree_leaves(output) if isinstance(x, Tensor)}
        self.total += sum(x.untyped_storage().nbytes() for key, x in made.items() if key not in known)
        return output


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _slope(lengths: Sequence[int], costs: Sequence[float]) -> float:
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])
