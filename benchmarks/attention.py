"""How attention over long texts grows: slopes of log cost over log length, sliding blocks against a dense mask."""

from __future__ import annotations

from typing import Any

from benchmarks.timing import quiet
from unseen.sequences.attention_growth import Growth, measure_growth


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Slopes (1 is linear, 2 quadratic) of blocks, with the dense ones as reference; cost at the longest text."""
    lengths = (128, 256) if quick else (1024, 2048, 4096, 8192)
    with quiet():
        block = measure_growth("block", lengths, repeats=1 if quick else 5)
        dense = measure_growth("dense", lengths[: None if quick else -1], repeats=1 if quick else 3)
    text = f"lambda attention over {lengths[0]:,} to {lengths[-1]:,} tokens"
    longest = dense.lengths[-1]
    at = f"lambda attention over {longest:,} tokens, blocks against dense"
    time, memory = _at(block, longest), _at(dense, longest)
    return [
        _row(f"{text}: slope of time", block.time_slope, "", dense.time_slope, "<= 1.2"),
        _row(f"{text}: slope of memory", block.memory_slope, "", dense.memory_slope, "<= 1.05"),
        _row(f"{at}: time", time[0] * 1e3, "ms", memory[0] * 1e3, None),
        _row(f"{at}: memory", time[1] / 2**20, "MiB", memory[1] / 2**20, None),
    ]


def _at(growth: Growth, length: int) -> tuple[float, int]:
    index = growth.lengths.index(length)
    return growth.seconds[index], growth.bytes[index]


def _row(what: str, value: float, unit: str, reference: float, target: str | None) -> dict[str, Any]:
    ratio = reference / value
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": ratio,
        "target": target,
    }
