"""The contract of weight averaging."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from unseen.averaging import Averaging
from unseen.registry import averaging
from unseen.testing.contract import Buildable, ContractReport, builder, close, equal, require, through_file
from unseen.training.system import seeded


def check_averaging(average: Buildable, *, device: torch.device | str = "cpu") -> ContractReport:
    """Check that weight averaging keeps the contract of `unseen.averaging.Averaging`; arguments as above."""
    build, report = builder(averaging, average)
    losses = [3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 1.3, 1.2, 1.2, 1.3]
    steps = 4 * len(losses)

    def walk(seen: Averaging, model: nn.Module, first: int, last: int, move: float = 0.1) -> list[Any]:
        states = []
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(move * torch.randn(parameter.shape, generator=generator).to(parameter))
                model.get_buffer("1.num_batches_tracked").add_(1)
            before = copy.deepcopy(model.state_dict())
            seen.observe(step, model, losses[step // 4] if step % 4 == 3 else None)
            require(equal(before, model.state_dict()), report, "changes the network that it observes")
            states.append(before)
        return states

    def new(begun: bool = True) -> tuple[Averaging, nn.Module]:
        with seeded(0):
            model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(device)
        made = build()
        made.setup(steps=steps)
        if begun:
            made.begin(model)
        return made, model

    empty, _ = new()
    require(empty.result() is None, report, "has a result before it has seen a network: give None")
    seen, model = new()
    states = [copy.deepcopy(model.state_dict()), *walk(seen, model, 0, steps)]
    result = seen.result() or {}
    require(bool(result), report, "has no result after a whole training")
    require(set(result) == set(states[0]), report, "has a result with other names than the network's state")
    for name, value in result.items():
        like = states[0][name]
        same = value.dtype == like.dtype and value.shape == like.shape and value.device == like.device
        require(same, report, f"changes the dtype, shape or device of {name!r}")
        if value.is_floating_point():
            every = torch.stack([s[name] for s in states])
            inside = (value >= every.amin(0) - 1e-6) & (value <= every.amax(0) + 1e-6)
            require(bool(inside.all()), report, f"leaves the range of the weights seen, in {name!r}")
    kept = copy.deepcopy(result)
    require(equal(kept, seen.result()), report, "gives another result when asked again")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    require(equal(kept, seen.result()), report, "shares memory with the network")
    report.passed.append("result lies among the weights seen")

    constant, model = new()
    walk(constant, model, 0, steps, move=0.0)
    averaged = constant.result() or {}
    for name, value in model.named_parameters():
        close(averaged[name], value.detach(), report, "changes weights that never moved")
    report.passed.append("weights that never moved")

    for cut in (1, 10, 19, steps - 2):
        interrupted, model = new()
        walk(interrupted, model, 0, cut)
        resumed, _ = new(begun=False)
        resumed.load_state_dict(through_file(interrupted.state_dict(), report))
        walk(resumed, model, cut, steps)
        require(
            equal(kept, resumed.result()),
            report,
            f"has another result when it is interrupted after {cut} steps and resumed from its state_dict",
        )
    report.passed.append("exact resume")
    return report
