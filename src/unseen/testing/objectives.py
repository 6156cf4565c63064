"""The contract of objectives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unseen.objectives import Loss
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.batch import map_tensors
from unseen.testing.contract import Buildable, ContractReport, builder, close, equal, require
from unseen.testing.toy import (
    CLASSES,
    DOMAINS,
    LATE,
    PER_DOMAIN,
    Run,
    ToyStage,
    check_training,
    prepared,
    toy_batch,
    toy_system,
)
from unseen.training.stages import has_stages
from unseen.training.system import TrainingSystem

NewSystem = Callable[..., TrainingSystem]


def check_objective(
    objective: Buildable, *, device: torch.device | str = "cpu", steps: int = 60
) -> ContractReport:
    """Check that an objective keeps the contract of `unseen.objectives.Objective`.

    objective  registered name or spec, or a callable without arguments that gives a new objective
    device     where to compute
    steps      within which cross-entropy must fall on a separable toy
    Raises `ContractError`. The report's fact `vmap` says whether stacked systems run under `torch.func.vmap`.
    """
    build, report = builder(objectives, objective)

    def new(seed: int = 0, domains: int = DOMAINS, begun: bool = True) -> TrainingSystem:
        return toy_system(build, seed, device, domains, begun=begun)

    batch = toy_batch(device, step=LATE)
    _has_gradients(report, new, batch)
    _takes_odd_batches(report, new, batch)
    value = _repeats_without_effects(report, new(), batch)
    _takes_every_kind_of_batch(report, new, batch, value)
    if new().objective.carries_weights:
        _carries_weights(report, new, batch)
    check_training(report, lambda seed, **how: Run(new(seed, **how), "plain", device), steps)
    if has_stages(new().objective):
        _works_in_stages(report, new, device)
        report.facts["vmap"] = "works in stages, which a run does by itself"
    else:
        report.facts["vmap"] = _agrees_under_vmap(report, [new(0), new(1)], batch)
    return report


def _finite(report: ContractReport, system: TrainingSystem, batch: Batch, what: str) -> Loss:
    loss = system(prepared(system, batch))
    require(isinstance(loss, Loss), report, f"gives {type(loss).__name__} instead of Loss")
    shape = tuple(loss.total.shape)
    require(shape == (), report, f"gives a total of shape {shape} instead of a scalar")
    for name, part in {"total": loss.total, **loss.parts}.items():
        require(bool(torch.isfinite(part).all()), report, f"has a {name!r} that is not finite for {what}")
    loss.total.backward(retain_graph=True)
    for name, parameter in system.named_parameters():
        finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        require(finite, report, f"has a gradient that is not finite in {name!r} for {what}")
    return loss


def _has_gradients(report: ContractReport, new: NewSystem, batch: Batch) -> None:
    system = new()
    loss = _finite(report, system, batch, "an ordinary batch")
    reached = any(p.grad is not None and bool(p.grad.any()) for p in system.network.parameters())
    require(reached, report, "has no gradient into the network: it would train nothing")
    report.passed.append("finite loss with a gradient")
    weights = [p for p in system.network.featurizer.parameters() if p.requires_grad]
    if "penalty" in loss.parts and weights:
        penalty = loss.parts["penalty"]
        slopes = torch.autograd.grad(penalty, weights, allow_unused=True) if penalty.requires_grad else [None]
        require(
            any(slope is not None and bool(slope.any()) for slope in slopes),
            report,
            "has a penalty without a gradient into the featurizer: the features would not feel it",
        )
        report.passed.append("the penalty trains the features")


def _takes_odd_batches(report: ContractReport, new: NewSystem, batch: Batch) -> None:
    first = torch.arange(DOMAINS, device=batch.domain.device) * PER_DOMAIN
    _finite(report, new(), batch.take(batch.domain != 1), "a batch that misses a domain")
    _finite(report, new(), batch.take(batch.domain == 0), "a batch of which only one domain is present")
    _finite(report, new(), batch.take(first), "one example of each domain")
    _finite(report, new(), batch.take(first[:1]), "a single example")
    if not new().objective.needs_domains:
        alone = toy_batch(batch.domain.device, step=LATE, domains=1)
        _finite(report, new(domains=1), alone, "a single training domain")
    report.passed.append("small, uneven and missing domains")


def _repeats_without_effects(report: ContractReport, system: TrainingSystem, batch: Batch) -> Tensor:
    """The loss, after checking that nothing but buffers changes, and these not when a batch repeats."""
    random, before = torch.get_rng_state(), copy.deepcopy(batch)
    ready = prepared(system, batch)
    ready_before = copy.deepcopy(ready)
    value = system(ready).total.detach()
    for one, other in ((before, batch), (ready_before, ready)):
        same = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("x", "y", "domain"))
        require(same, report, "changes the batch in place")
    require(torch.equal(random, torch.get_rng_state()), report, "uses torch's global random state")
    buffers = {name: buffer.clone() for name, buffer in system.objective.named_buffers()}
    again = system(ready.again()).total.detach()
    for name, buffer in system.objective.named_buffers():
        same = torch.equal(buffer, buffers[name])
        require(same, report, f"changes the buffer {name!r} although batch.repeat is True")
    close(again, value, report, "gives another loss when a batch repeats at the same parameters")
    report.passed.append("a repeated batch changes nothing")
    return value


def _takes_every_kind_of_batch(report: ContractReport, new: NewSystem, batch: Batch, value: Tensor) -> None:
    weighted, soft = copy.deepcopy(batch), copy.deepcopy(batch)
    weighted.weight = torch.ones(len(batch), device=batch.domain.device)
    soft.y = nn.functional.one_hot(batch.y, CLASSES).float()
    for changed, what in ((weighted, "weights of one"), (soft, "one-hot soft targets")):
        system = new()
        close(system(prepared(system, changed)).total, value, report, f"gives another loss for {what}")
    report.passed.append("weights and soft targets")
    if batch.domain.device.type == "mps":
        return  # has no float64
    system = new().double()
    double = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    double.unlabelled = map_tensors(torch.Tensor.double, batch.unlabelled)
    double.auxiliary = map_tensors(torch.Tensor.double, batch.auxiliary)
    total = system(prepared(system, double)).total
    require(total.dtype == torch.float64, report, f"computes in {total.dtype} when all is float64")
    close(total.float(), value, report, "gives another loss in float64", tolerance=1e-3)
    report.passed.append("float64")


def _carries_weights(report: ContractReport, new: NewSystem, batch: Batch) -> None:
    """Two examples of each domain get weight zero and the others the mean weight one, or these two are removed."""
    kept = torch.arange(len(batch), device=batch.domain.device) % PER_DOMAIN >= 2
    weighted = copy.deepcopy(batch)
    weighted.weight = kept * PER_DOMAIN / (PER_DOMAIN - 2)
    with_zeros, without = new(), new()
    value, expected = (
        system(prepared(system, one)).total
        for system, one in ((with_zeros, weighted), (without, batch.take(kept)))
    )
    close(value, expected, report, "feels an example of weight zero, but says that it carries weights")
    for slope, right in zip(_slopes(value, with_zeros), _slopes(expected, without), strict=True):
        close(slope, right, report, "has a gradient that feels an example of weight zero", tolerance=1e-3)
    report.passed.append("an example of weight zero might as well be absent")


def _slopes(loss: Tensor, system: TrainingSystem) -> list[Tensor]:
    weights = list(system.network.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def _works_in_stages(report: ContractReport, new: NewSystem, device: torch.device | str) -> None:
    random, batch = torch.get_rng_state(), toy_batch(device)
    first, second = new(1), new(1)
    require(equal(first.state_dict(), second.state_dict()), report, "begins differently with the same seed")
    for system in (first, second):
        system.objective.finish(ToyStage(system.network, 1, device))
    logits = first.network(batch.x)
    finite = logits.shape == (len(batch), CLASSES) and bool(torch.isfinite(logits).all())
    require(finite, report, "leaves a network whose logits are not finite, or not (B, C)")
    require(equal(first.state_dict(), second.state_dict()), report, "finishes differently with the same seed")
    same = torch.equal(random, torch.get_rng_state())
    require(same, report, "uses torch's global random state in a stage")
    report.passed.append("stages")


def _agrees_under_vmap(report: ContractReport, systems: list[TrainingSystem], batch: Batch) -> bool | str:
    batches = [prepared(system, batch, seed) for seed, system in enumerate(systems)]
    alone = copy.deepcopy(systems)
    expected = torch.stack([s(b).total for s, b in zip(alone, batches, strict=True)])
    parameters, buffers = stack_module_state(systems)  # type: ignore[arg-type]
    skeleton = copy.deepcopy(systems[0])

    def total(parameters: Any, buffers: Any, x: Tensor, y: Tensor, group: Tensor, auxiliary: Any) -> Tensor:
        one = Batch(x=x, y=y, domain=batch.domain, domains=DOMAINS, group=group, step=LATE)
        one.unlabelled, one.auxiliary = batch.unlabelled, auxiliary
        return functional_call(skeleton, (parameters, buffers), (one,)).total

    try:
        x = torch.stack([b.x for b in batches])  # type: ignore[misc]
        y = torch.stack([b.y for b in batches])
        group = torch.stack([b.group for b in batches])  # type: ignore[misc]
        auxiliary = _stacked([b.auxiliary for b in batches])
        found = vmap(total)(parameters, buffers, x, y, group, auxiliary)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    close(found, expected, report, "gives another loss under vmap than alone")
    for name, value in buffers.items():
        together = torch.stack([dict(s.named_buffers())[name] for s in alone])
        close(value, together, report, f"changes the buffer {name!r} differently under vmap")
    return True


def _stacked(inputs: list[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _stacked([one[name] for one in inputs]) for name in inputs[0]}
    return torch.stack(inputs)
