"""What watching a mixture of experts costs: a live monitor's share of the training that it watches.

The monitor measures every 100 steps, on as many samples as a step trains on: a pass of these through the model, their
pathways, and 1,000 distances. Its share is that of one measurement in 100 steps and one measurement.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.timing import compare
from unseen.sequences.generalization_monitor import GeneralizationMonitor
from unseen.sequences.mixture_of_experts import MoEDecoder

SIZES = {
    "width 48, 3 layers of 6 experts, 256 x 3 tokens": (dict(width=48, layers=3, experts=6), (256, 3)),
    "width 128, 4 layers of 8 experts, 64 x 64 tokens": (dict(width=128, layers=4, experts=8), (64, 64)),
}
QUICK = {"width 8, 2 layers of 4 experts, 8 x 3 tokens": (dict(width=8, layers=2, experts=4), (8, 3))}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of shares (0 to 1), and of milliseconds of a measurement beside those of a step."""
    rows = []
    for name, (options, shape) in (QUICK if quick else SIZES).items():
        model = MoEDecoder(256, heads=4, hidden=32, **options)
        tokens = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
        monitor = GeneralizationMonitor(tokens)

        def measure(model: MoEDecoder = model, monitor: GeneralizationMonitor = monitor) -> None:
            monitor.readings.clear()
            monitor.measure(0, model)

        works = {"step": _step(model, tokens), "measurement": measure}
        seconds = compare(works, rounds=1 if quick else 7, seconds=0.01 if quick else 0.1)
        share = seconds["measurement"] / (monitor.every * seconds["step"] + seconds["measurement"])
        rows += [
            _row(f"share of a monitor every {monitor.every} steps: {name}", share, "", None, "<= 0.03"),
            _row(
                f"measurement, a step: {name}",
                seconds["measurement"] * 1e3,
                "ms",
                seconds["step"] * 1e3,
                None,
            ),
        ]
    return rows


def _step(model: MoEDecoder, tokens: torch.Tensor) -> Any:
    """A training step as `unseen.papers.modular_experts` makes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)  # weights must not wander while it is repeated

    def step() -> None:
        loss = model.loss(tokens) + 0.01 * model.balance()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _row(what: str, value: float, unit: str, reference: float | None, target: str | None) -> dict[str, Any]:
    ratio = None if reference is None else reference / value
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": ratio,
        "target": target,
    }
