"""Gradients of single examples beside a loop of backward passes, and of a head beside a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import compare
from unseen.networks import Network, build_network
from unseen.networks.example_gradients import ExampleGradients
from unseen.objectives.erm import ERM
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.training.learner import Learner
from unseen.training.system import TrainingSystem, build_optimizer

CLASSES = 10


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds an example (transformer) or a batch (heads); the loop stands for what one would write by hand."""
    return [*_transformer(quick), *_head(quick)]


def _transformer(quick: bool) -> list[dict[str, Any]]:
    """Two layers of width 64 over 8 x 8 images; the loop projects each gradient by one stored matrix."""
    width, count, looped, dimension = (8, 4, 2, 8) if quick else (64, 256, 8, 512)
    network = build_network(f"transformer(width={width}, heads=2)", (1, 8, 8), CLASSES).eval()
    x, y = torch.randn(count, 1, 8, 8), torch.arange(count) % CLASSES
    engine = ExampleGradients(network)
    matrix = torch.randn(engine.size, dimension)

    def loop(project: bool) -> list[Tensor]:
        found = []
        for index in range(looped):
            network.zero_grad()
            nn.functional.cross_entropy(network(x[index : index + 1]), y[index : index + 1]).backward()
            flat = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            found.append(flat @ matrix if project else flat)
        return found

    seconds = compare(
        {
            "projected": lambda: engine.projected((x, y), dimension, 0),
            "exact": lambda: engine.flat((x, y)),
            "loop, projected": lambda: loop(True),
            "loop": lambda: loop(False),
        },
        rounds=1 if quick else 5,
    )
    each = {name: value / (looped if "loop" in name else count) for name, value in seconds.items()}
    what = f"transformer with {engine.size:,} parameters"
    return [
        _row(
            f"{what}: projected to {dimension}, against a loop with a stored matrix",
            each["projected"],
            each["loop, projected"],
            8,
        ),
        _row(
            f"{what}: projected to {dimension}, against a loop that does not project",
            each["projected"],
            each["loop"],
        ),
        _row(f"{what}: exact, against a loop", each["exact"], each["loop"]),
    ]


def _head(quick: bool) -> list[dict[str, Any]]:
    """`value` is the gradients' time, `reference` the training step's: at most 1.3 steps is a ratio of 0.77."""
    size, batch = (8, 6) if quick else (1280, 128)
    rows = []
    for what, network, parameters in (
        (f"linear head {size}-{CLASSES}", "linear", "*"),
        (f"head of an MLP {size}-256-256-{CLASSES}", "mlp(width=256)", "head.*"),
    ):
        model = build_network(network, (size,), CLASSES)
        data = torch.randn(batch, size), torch.arange(batch) % CLASSES
        engine, step = ExampleGradients(model, parameters=parameters), _erm_step(model, *data)
        asked = {
            "norms": lambda e=engine, d=data: e.norms(d),
            "mean and mean square": lambda e=engine, d=data: e.mean_and_square(d),
        }
        seconds = compare({**asked, "step": step}, rounds=1 if quick else 9)
        rows += [
            _row(
                f"{what}, {batch} examples: {name}, against an ERM step",
                seconds[name],
                seconds["step"],
                1 / 1.3 if name == "norms" else None,
            )
            for name in asked
        ]
    return rows


def _erm_step(network: Network, x: Tensor, y: Tensor) -> Any:
    system = TrainingSystem(network, ERM())
    learner = Learner(learning_rate=1e-6)
    rule = updates.build("plain").bind(system, build_optimizer(learner, list(system.parameters())))
    batch = Batch(x=x, y=y, domain=torch.zeros(len(y), dtype=torch.long), domains=1)
    return lambda: rule.step(system, batch)


def _row(what: str, value: float, reference: float, target: float | None = None) -> dict[str, Any]:
    return {
        "what": what,
        "value": value * 1e3,
        "unit": "ms",
        "reference": reference * 1e3,
        "ratio": reference / value,
        "target": target,
    }
