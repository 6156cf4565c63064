"""A hundred permutations of the MMD: one matrix product, and copies of the kernel in each shuffled order.

The usual way takes rows and columns of the kernel in each shuffled order and averages the blocks; a tenth of the
permutations is measured and counted ten times. Both start from the kernel, in float64 as libraries hold it (ours
computes the product in float32) and in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import compare
from unseen.measures.permutation_tests import permuted_differences


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of milliseconds for all permutations."""
    permutations, rounds, sizes = (10, 1, (20,)) if quick else (100, 3, (1000, 2000))
    rows = []
    for count, dtype in [(count, torch.float64) for count in sizes] + [(sizes[0], torch.float32)]:
        x = torch.randn(2 * count, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
        kernel = torch.exp(-torch.cdist(x, x).square() / 128)
        seconds = compare(
            {
                "product": lambda kernel=kernel, count=count: permuted_differences(
                    kernel, count, permutations
                ),
                "copies": lambda kernel=kernel, count=count: _by_copies(kernel, count, permutations // 10),
            },
            rounds=rounds,
        )
        reference = 10 * seconds["copies"]
        rows.append({
            "what": f"MMD, {permutations} permutations of {count:,} + {count:,} examples, {str(dtype)[6:]} kernel",
            "value": 1e3 * seconds["product"],
            "unit": "ms",
            "reference": 1e3 * reference,
            "ratio": reference / seconds["product"],
            "target": 200 if dtype == torch.float64 else None,
        })  # fmt: skip
    return rows


def _by_copies(kernel: Tensor, count: int, permutations: int) -> list[Tensor]:
    generator, others = torch.Generator().manual_seed(0), len(kernel) - count
    kernel = kernel - torch.diag(kernel.diagonal())
    found = []
    for _ in range(permutations):
        order = torch.randperm(len(kernel), generator=generator)
        shuffled = kernel[order][:, order]
        found.append(
            shuffled[:count, :count].sum() / (count * (count - 1))
            + shuffled[count:, count:].sum() / (others * (others - 1))
            - 2 * shuffled[:count, count:].mean()
        )
    return found
