"""The Vendi score of 50,000 examples of 1,024 numbers, beside the one matrix product that it needs.

Both in turns; the best of the rounds counts, in CPU time of the process, which a busy machine disturbs least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from unseen.measures.kernel_spectrum import vendi_score


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of seconds; the reference is X^T X, or X X^T where there are fewer examples than numbers."""
    rounds = 1 if quick else 3
    sizes = ((200, 32), (32, 200)) if quick else ((50_000, 1024), (1024, 8192))
    rows = []
    for count, width in sizes:
        x = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
        scores, products = [], []
        for _ in range(rounds):
            products.append(_seconds(lambda x=x: x.T @ x if len(x) >= x.shape[1] else x @ x.T))
            scores.append(_seconds(lambda x=x: vendi_score(x)))
        rows.append({
            "what": f"Vendi score, {count:,} x {width:,}, beside the matrix product",
            "value": min(scores),
            "unit": "s",
            "reference": min(products),
            "ratio": min(products) / min(scores),
            "target": 1 / 1.3 if count == 50_000 else None,
        })  # fmt: skip
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
