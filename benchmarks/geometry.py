"""Intrinsic dimension and class separation of data as large as MNIST: seconds, and memory beyond the data.

Made data: 10 classes around a curved surface of 14 dimensions in 784. Run in a process of its own, on as many threads
as the others (`--threads 2` for both cores).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

CHILD = """
import sys, time
import torch
from unseen.measures.class_separation import class_separation
from unseen.measures.intrinsic_dimension import intrinsic_dimension
count, width, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
generator = torch.Generator().manual_seed(0)
surface = torch.randn(count, 14, generator=generator)
labels = torch.arange(count) % 10
x = torch.tanh(surface @ torch.randn(14, width, generator=generator) / 4 + labels.unsqueeze(1) / 5)
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
began, before = time.perf_counter(), status("VmRSS")
intrinsic_dimension(x)
middle = time.perf_counter()
class_separation(x, labels)
print(middle - began, time.perf_counter() - middle, (status("VmHWM") - before) / 1024)
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of seconds (target: both within 3 minutes) and MiB (target: 4 GiB)."""
    count, width = (300, 16) if quick else (60_000, 784)
    arguments = [sys.executable, "-c", CHILD, *map(str, (count, width, torch.get_num_threads()))]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    dimension, separation, memory = map(float, out[-3:])
    size = f"{count:,} x {width}"
    return [
        _row(f"intrinsic dimension, {size}", dimension, "s", "<= 90"),
        _row(f"class separation, {size}", separation, "s", "<= 90"),
        _row(f"both: memory beyond the data, {size}", memory, "MiB", "<= 4096"),
    ]


def _row(what: str, value: float, unit: str, target: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "reference": None, "ratio": None, "target": target}
