"""A hundred permutations of the MMD of 1,000 and 1,000 examples: one matrix product, and copies of the kernel.

The usual way takes rows and columns of the kernel in each shuffled order and averages the blocks. Both start from the
kernel; in float64, as libraries hold it (ours computes the product in float32), and in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import compare
from unseen.measures.permutation_tests import permuted_differences


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of milliseconds for all permutations."""
    count, permutations, rounds = (20, 5, 1) if quick else (1000, 100, 3)
    rows = []
    for dtype, target in ((torch.float64, 200), (torch.float32, None)):
        x = torch.randn(2 * count, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
        kernel = torch.exp(-torch.cdist(x, x).square() / 128)
        seconds = compare(
            {
                "product": lambda kernel=kernel: permuted_differences(kernel, count, permutations),
                "copies": lambda kernel=kernel: _by_copies(kernel, count, permutations),
            },
            rounds=rounds,
        )
        rows.append({
            "what": f"MMD, {permutations} permutations of {count:,} + {count:,} examples, {str(dtype)[6:]} kernel",
            "value": 1e3 * seconds["product"],
            "unit": "ms",
            "reference": 1e3 * seconds["copies"],
            "ratio": seconds["copies"] / seconds["product"],
            "target": target,
        })  # fmt: skip
    return rows


def _by_copies(kernel: Tensor, count: int, permutations: int) -> list[Tensor]:
    generator, others = torch.Generator().manual_seed(0), len(kernel) - count
    kernel = kernel - torch.diag(kernel.diagonal())
    found = []
    for _ in range(1 + permutations):
        order = torch.randperm(len(kernel), generator=generator)
        shuffled = kernel[order][:, order]
        found.append(
            shuffled[:count, :count].sum() / (count * (count - 1))
            + shuffled[count:, count:].sum() / (others * (others - 1))
            - 2 * shuffled[:count, count:].mean()
        )
    return found
