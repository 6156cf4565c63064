"""Outputs of a network kept in a folder and read memory-mapped, beside the same in memory: peak memory and time.

Each is measured in a child process. Memory is the growth of its anonymous memory (RssAnon, read every millisecond)
from before the pass: pages of a file that is mapped are the system's to take back, and do not count. Seconds are CPU
time of the process and of the system on its behalf.
"""

from __future__ import annotations

import json
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import Any

from unseen.networks.feature_cache import cache_folder

INPUTS, FEATURES, CLASSES = 32, 512, 100
DETECTORS = ("msp", "mahalanobis", "relative-mahalanobis", "residual", "knn")
CHILD = """
import json, sys, threading, time
import torch
from unseen.networks import Bank, build_network
from unseen.registry import detectors
from unseen.shifts.preprocessing import ArrayPreprocessing
from unseen.training import Predictor

folder, how, count, inputs, features, classes, names = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
preprocessing = ArrayPreprocessing([inputs], [0.0] * inputs, [1.0] * inputs)
network = build_network(f"mlp(width={features})", (inputs,), classes)
predictor = Predictor(network, preprocessing, tuple(map(str, range(classes))))
x, labels = torch.randn(count, inputs), torch.arange(count) % classes
predictor.outputs(x[:600], folder=f"{folder}/warm-{how}")
for name in names:
    detector, some = detectors.build(name), Bank.open(f"{folder}/warm-{how}")
    some.labels, some.head = labels[:600], network.head
    detector.fit(some).score(some)

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

peak, watching = 0.0, True
def watch():
    global peak
    while watching:
        peak = max(peak, anonymous())
        time.sleep(0.001)

def measured(work):
    global peak
    peak = before = anonymous()
    began = time.process_time()
    found = work()
    return found, round(peak - before, 1), round(time.process_time() - began, 2)

threading.Thread(target=watch, daemon=True).start()
kept = {} if how == "memory" else {"folder": f"{folder}/{how}", "dtype": how}
bank, *made = measured(lambda: predictor.outputs(x, **kept))
bank.labels, bank.head = labels, network.head
figures = {"outputs": made}
for name in names:
    _, *figures[name] = measured(lambda: detectors.build(name).fit(bank).score(bank))
_, *figures["opened"] = measured(lambda: predictor.outputs(x, **kept))
print(json.dumps(figures))
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of `python -m benchmarks`."""
    count = 1_000 if quick else 60_000
    found = {how: _child(how, count) for how in ("memory", "float32", "float16")}
    size = count * (FEATURES + CLASSES) * 4 / 2**20
    rows = []
    for how in ("float32", "float16"):
        for what, (peak, seconds) in found[how].items():
            title = {
                "outputs": "computing the outputs",
                "opened": "asking for them again",
            }.get(what, f"fit and score {what}")
            title = f"{title}, {count:,} x {FEATURES} ({size:.0f} MiB), {how}"
            before, took = found["memory"][what]
            rows.append(_row(f"{title}: peak memory", peak, "MiB", before))
            rows.append(_row(f"{title}: time", seconds, "s", took))
    return rows


def _child(how: str, count: int) -> dict[str, list[float]]:
    cache = cache_folder()  # on a disk, where a system's own temporary folder may be memory
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as folder:
        arguments = json.dumps([folder, how, count, INPUTS, FEATURES, CLASSES, DETECTORS])
        command = [sys.executable, "-c", CHILD, arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _row(what: str, value: float, unit: str, reference: float) -> dict[str, Any]:
    ratio = reference / value if value else None
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": reference if value else None,
        "ratio": ratio,
        "target": None,
    }
