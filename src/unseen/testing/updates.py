"""The contract of update rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unseen.objectives import Loss
from unseen.registry import objectives, updates
from unseen.shifts import Batch
from unseen.testing.contract import Buildable, ContractReport, builder, close, equal, require
from unseen.testing.toy import DOMAINS, PER_DOMAIN, Run, check_training, toy_batch, toy_system
from unseen.updates import UpdateRule


def check_update(update: Buildable, *, device: torch.device | str = "cpu", steps: int = 60) -> ContractReport:
    """Check that an update rule keeps the contract of `unseen.updates.UpdateRule`; arguments as above."""
    build, report = builder(updates, update)

    def run(seed: int = 0, begun: bool = True, **options: Any) -> Run:
        system = toy_system(lambda: objectives.build("erm"), seed, device, DOMAINS, begun=begun)
        return Run(system, build(), device, **options)

    still = run(learning_rate=0.0, optimizer=torch.optim.SGD)
    before = copy.deepcopy(still.system.state_dict())
    expected = still.system(toy_batch(device)).total.detach()
    loss = still.step()
    require(isinstance(loss, Loss), report, f"gives {type(loss).__name__} instead of Loss")
    close(loss.total.detach(), expected, report, "does not give the loss at the parameters before the change")
    require(
        equal(before, still.system.state_dict()),
        report,
        "does not restore the parameters: a step of learning rate 0 changed them",
    )
    require(still.system.training, report, "leaves the network in evaluation mode")

    flat = run(optimizer=torch.optim.SGD)
    before = copy.deepcopy(flat.system.state_dict())
    flat.step(lambda batch: Loss(torch.stack([0 * p.sum() for p in flat.system.parameters()]).sum()))
    require(
        equal(before, flat.system.state_dict()),
        report,
        "moves the parameters although the loss is constant",
    )
    report.passed.append("parameters are restored")

    fresh = run()
    seen: list[int] = []

    def watched(batch: Batch) -> Loss:
        if not batch.repeat:
            seen.extend(batch.ids.tolist())  # type: ignore[union-attr]
        return fresh.system(batch)

    fresh.step(watched)
    require(
        len(seen) == len(set(seen)),
        report,
        "evaluates examples twice without marking the second time: use batch.again()",
    )
    report.passed.append("repeated evaluations are marked")

    batch = toy_batch(device)
    first = torch.arange(DOMAINS, device=device) * PER_DOMAIN
    for part, what in (
        (batch.take(batch.domain != 1), "a batch that misses a domain"),
        (batch.take(first), "one example of each domain"),
        (batch.take(first[:1]), "a single example"),
    ):
        small = run()
        loss = small.step(batch=part)
        finite = all(bool(torch.isfinite(v).all()) for v in (loss.total, *small.system.parameters()))
        require(finite, report, f"has a loss or parameters that are not finite after {what}")
    report.passed.append("small, uneven and missing domains")

    check_training(report, run, steps)
    report.facts["stacked"] = _stacked_agrees(build, device)
    return report


def _stacked_agrees(build: Callable[[], UpdateRule], device: torch.device | str) -> bool | str:
    """Whether the rule treats parameters with a leading dimension of runs as that many separate runs."""
    generator = torch.Generator().manual_seed(0)
    starts, goals = torch.randn(2, 3, 4, 5, generator=generator).to(device)
    batch = toy_batch(device)

    def moved(values: list[Tensor], goals: list[Tensor], stacked: bool) -> Tensor:
        module = nn.ParameterList([nn.Parameter(value.clone()) for value in values])
        rule = build().bind(module, torch.optim.SGD(module.parameters(), lr=0.003), stacked=stacked)
        for _ in range(3):
            rule.step(
                lambda batch: Loss(sum((p - g).pow(4).sum() for p, g in zip(module, goals, strict=True))),
                batch,
            )
        return torch.cat([p.detach().flatten(1 if stacked else 0) for p in module], -1)

    def halves(tensor: Tensor) -> list[Tensor]:
        return [tensor[..., :2], tensor[..., 2:]]

    try:
        together = moved(halves(starts), halves(goals), True)
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error).splitlines()[0]
    alone = torch.stack([moved(halves(s), halves(g), False) for s, g in zip(starts, goals, strict=True)])
    return torch.allclose(together, alone, atol=1e-6) or "runs in one stack influence each other"
