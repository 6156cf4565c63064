"""Merging two checkpoints on disk, beside plainly reading both and writing one; peak memory at two sizes.

Both read from and write to the page cache of the same folder, in turns; the best of the rounds counts, in CPU time
of the process and of the system on its behalf, which a busy machine disturbs least. Memory is
the growth of a child process's peak resident size (VmHWM) from just before the merge: mapped pages would count.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from unseen.errors import InputError
from unseen.merging import Recipe, merge_to_disk

METHODS = {"linear": {"weight": [0.3, 0.7]}, "slerp": {"t": 0.4}}
PIECE = 1 << 20
"""Bytes that plain copying moves at a time: larger pieces leave the caches and take several times as long."""
CHILD = """
import json, sys
from unseen.merging import Recipe, merge_to_disk
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
import torch, unseen.merging.streaming
from unseen.registry import merging
merging.names()  # imports the methods, which is no part of the merge
torch.set_num_threads(1)
models, out, options = json.loads(sys.argv[1])
before = status("VmRSS")
merge_to_disk(Recipe.of(models, **options), out)
print((status("VmHWM") - before) / 1024)
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of seconds (reference: plain reading and writing) and of MiB (target: half of a tensor of 64 MiB)."""
    side, tensors, rounds = (256, 4, 1) if quick else (4096, 16, 3)
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        need = side * side * 4 * tensors * 4 * 4
        if shutil.disk_usage(folder).free < need:
            raise InputError(f"disk of {name!r}", "is too full", f"The benchmark needs {need / 1e9:.0f} GB.")
        models = [_checkpoint(folder / str(seed), side, tensors, seed) for seed in range(2)]
        size = f"{side * side * 4 * tensors / 2**30:.2g} GiB"
        for method, options in METHODS.items():
            recipe = Recipe.of(models, method, **options)
            merging, plain = [], []
            for _ in range(rounds):
                plain.append(_seconds(lambda: _copy(models, folder / "plain")))
                merging.append(_seconds(lambda r=recipe: merge_to_disk(r, folder / "merged")))
                shutil.rmtree(folder / "merged")
            rows.append(
                _row(
                    f"{method}, 2 x {size} of float32, beside reading and writing as much",
                    min(merging), "s", min(plain), 0.6 if method == "linear" else None,
                )
            )  # fmt: skip
        limit = "<= 32"
        small = _peak(models, folder / "out")
        rows.append(_row(f"linear, 2 x {size}: peak memory", small, "MiB", None, limit))
        for path in models:
            shutil.rmtree(path)
        models = [_checkpoint(folder / f"large{seed}", side, 4 * tensors, seed) for seed in range(2)]
        size = f"{side * side * 16 * tensors / 2**30:.2g} GiB"
        large = _peak(models, folder / "out")
        rows.append(_row(f"linear, 2 x {size}: peak memory", large, "MiB", small, limit))
    return rows


def _checkpoint(folder: Path, side: int, tensors: int, seed: int) -> Path:
    """A folder with one file of `tensors` square matrices."""
    folder.mkdir()
    values = torch.randn(side, side, generator=torch.Generator().manual_seed(seed))
    state = {f"layers.{i}.weight": values.roll(i, 0).contiguous() for i in range(tensors)}
    save_file(state, folder / "model.safetensors")
    return folder


def _copy(models: list[Path], out: Path) -> None:
    """Read both and write one, through memory that is already there."""
    buffer = memoryview(bytearray(PIECE))
    files = [(path / "model.safetensors").open("rb", buffering=0) for path in models]
    with out.open("wb", buffering=0) as target:
        while count := files[0].readinto(buffer):
            target.write(buffer[:count])
            for file in files[1:]:
                file.readinto(buffer)
    for file in files:
        file.close()
    out.unlink()


def _seconds(work: Any) -> float:
    """CPU time of this process, the system's copying between page cache and process included."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _peak(models: list[Path], out: Path) -> float:
    arguments = json.dumps([[str(path) for path in models], str(out), {"method": "linear"}])
    found = subprocess.run(
        [sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, check=True
    )
    shutil.rmtree(out)
    return float(found.stdout.split()[-1])


def _row(what: str, value: float, unit: str, reference: float | None, target: Any) -> dict[str, Any]:
    ratio = None if reference is None else reference / value
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": ratio,
        "target": target,
    }
