"""A separable problem over shifted domains, and a training on it that can be cut and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.networks import Bank, Network
from unseen.objectives import Loss, Objective
from unseen.registry import Spec, objectives, updates
from unseen.shifts import Batch
from unseen.testing.contract import ContractReport, equal, require, through_file
from unseen.training.system import TrainingSystem, seeded
from unseen.updates import UpdateRule

INPUTS, FEATURES, CLASSES, DOMAINS, PER_DOMAIN = 6, 8, 3, 3, 12
STEPS = 60
"""Steps of a whole training on the toy."""
LATE = 1_000_000
"""A training step at which every warm-up is over."""


def toy_batch(device: torch.device | str, step: int = 0, domains: int = DOMAINS) -> Batch:
    """Classes that a line separates, in domains that are shifted and scaled a little."""
    generator = torch.Generator().manual_seed(7)
    count = domains * PER_DOMAIN
    domain, labels = torch.arange(domains).repeat_interleave(PER_DOMAIN), torch.arange(count) % CLASSES
    x = 0.3 * torch.randn(count, INPUTS, generator=generator) * (1 + 0.3 * domain).unsqueeze(1)
    x[:, :CLASSES] += 2 * nn.functional.one_hot(labels, CLASSES)
    x[:, CLASSES] += 0.3 * domain
    return Batch(
        x=x,
        y=labels,
        domain=domain,
        domains=domains,
        ids=torch.arange(count),
        group=labels % 2,
        step=step,
        unlabelled=torch.randn(count, INPUTS, generator=generator),
        auxiliary=torch.randn(count, INPUTS, generator=generator) - 2,
    ).to(device)


class ToyStage:
    """The `unseen.objectives.Stage` of a toy run; every fourth example is for validation."""

    def __init__(self, network: Network, seed: int, device: torch.device | str, domains: int = DOMAINS):
        self.network, self.seed, self.device = network, seed, torch.device(device)
        self.classes, self.domains, self.size = CLASSES, domains, domains * PER_DOMAIN
        self.steps, self.batch_size = STEPS, self.size
        self.learning_rate, self.weight_decay = 0.02, 0.0

    def rows(self, role: Literal["train", "validation"]) -> Tensor:
        held_out = torch.arange(self.size) % 4 == 3
        return (held_out if role == "validation" else ~held_out).nonzero().squeeze(1)

    def labels(self, rows: Tensor) -> Tensor:
        return self.batch(rows).y.cpu()

    def groups(self, rows: Tensor) -> Tensor:
        return self.batch(rows).group.cpu()  # type: ignore[union-attr]

    def batch(self, rows: Tensor) -> Batch:
        return toy_batch(self.device, domains=self.domains).take(rows.to(self.device))

    def bank(self, network: Network, rows: Tensor) -> Bank:
        batch = self.batch(rows)
        with torch.no_grad():
            features = network.featurizer(batch.x)
            logits = network.head(features)
        return Bank(features.cpu(), logits.cpu(), batch.y.cpu(), batch.domain.cpu(), rows, network.head)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def train(
        self, objective: str | Spec = "erm", *, update: str | Spec = "plain", steps: int = 30, **changes: Any
    ) -> Network:
        system = toy_system(lambda: objectives.build(objective), self.seed + 1, self.device, self.domains)
        run, batch = Run(system, updates.build(update), self.device), self.batch(self.rows("train"))
        for step in range(steps):
            run.step(batch=replace(batch, step=step))
        return system.network


def toy_system(
    build: Callable[[], Objective],
    seed: int,
    device: torch.device | str,
    domains: int,
    *,
    begun: bool = True,
) -> TrainingSystem:
    """Network and objective, which has begun unless a checkpoint will restore what `begin` decides."""
    with seeded(seed):
        objective = build()
        network = objective.make_network(_toy_network, domains=domains)
        objective.setup(features=network.features, classes=CLASSES, domains=domains)
    system = TrainingSystem(network, objective).to(device)
    if begun:
        objective.begin(ToyStage(network, seed, device, domains))
    return system.to(device)


def _toy_network() -> Network:
    return Network(nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh()), FEATURES, CLASSES)


def prepared(system: TrainingSystem, batch: Batch, seed: int = 0) -> Batch:
    return system.objective.prepare(batch, torch.Generator().manual_seed(seed))


class Run:
    """A few training steps on the toy, which can be cut and resumed."""

    def __init__(
        self,
        system: TrainingSystem,
        rule: str | UpdateRule,
        device: torch.device | str,
        learning_rate: float = 0.02,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ):
        self.system, self.device, self.count = system, device, 0
        self.optimizer = optimizer(list(system.parameters()), lr=learning_rate)
        rule = updates.build(rule) if isinstance(rule, str) else rule
        self.rule = rule.bind(system, self.optimizer)

    def step(self, function: Callable[[Batch], Loss] | None = None, batch: Batch | None = None) -> Loss:
        batch = toy_batch(self.device, step=self.count) if batch is None else batch
        if self.system.objective.resets_optimizer_at(self.count):
            self.rule.reset()
        with seeded(self.count):
            loss = self.rule.step(function or self.system, prepared(self.system, batch, self.count))
        self.count += 1
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "system": self.system.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rule": self.rule.state_dict(),
            "count": self.count,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.system.load_state_dict(state["system"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rule.load_state_dict(state["rule"])
        self.count = state["count"]

    def cross_entropy(self) -> float:
        batch = toy_batch(self.device)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.system.network(batch.x), batch.y))


def check_training(report: ContractReport, start: Callable[..., Run], steps: int) -> None:
    """`start(seed)` gives a new run; `start(seed, begun=False)` one that waits for the state of another."""
    run = start(0)
    began, initial = run.cross_entropy(), copy.deepcopy(run.system.state_dict())
    for _ in range(steps):
        run.step()
    for name, parameter in run.system.named_parameters():
        if parameter.requires_grad:
            require(not torch.equal(parameter, initial[name]), report, f"never moves the parameter {name!r}")
    require(
        run.cross_entropy() < 0.7 * began,
        report,
        f"does not learn separable classes: cross-entropy went from {began:.3f} to {run.cross_entropy():.3f} "
        f"in {steps} steps",
    )
    report.passed.append("learns")
    first, second = start(1), start(1)
    for _ in range(4):
        first.step()
        second.step()
    require(
        equal(first.system.state_dict(), second.system.state_dict()), report, "is not decided by the seed"
    )
    report.passed.append("same seed, same result")
    resumed = start(2, begun=False)
    resumed.load(through_file(first.state(), report))
    for _ in range(3):
        first.step()
        resumed.step()
    require(
        equal(first.system.state_dict(), resumed.system.state_dict()),
        report,
        "goes on differently when it is resumed from its state_dict",
    )
    report.passed.append("exact resume")
