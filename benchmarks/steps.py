"""What a training step of each method costs, in ERM steps, beside a straightforward implementation of it.

CORAL's Gram matrix of B examples and its backward product alone are 7 % (2 x 64) and 14 % (8 x 32) of the MLP's ERM
step: with the parting of a batch into domains that every penalty has, 1.2 is out of reach there. Sharpness-aware steps
are two steps and a few passes over the weights; measured alone, with the weights in the cache, the MLP's are 2.03 (SAM)
to 2.11 (ASAM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.straightforward import STRAIGHTFORWARD, hutchinson_diagonal
from benchmarks.timing import Work, compare
from unseen.networks import Network, build_network
from unseen.objectives.head_statistics import head_statistics
from unseen.registry import averaging, objectives, updates
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.training.data import TrainingData
from unseen.training.learner import Learner
from unseen.training.stages import Train, TrainingStage, has_stages
from unseen.training.system import build_optimizer, build_system

CLASSES = 2
AFTER_WARMUPS = 1000
CLOSED_FORMS = ("coral", "fishr", "hgp", "hutchinson", "iga", "irm", "vrex")
SHARPNESS_AWARE = ("asam", "fsam", "gsam", "sagm", "sam")
TARGETS = dict.fromkeys(CLOSED_FORMS, "<= 1.2") | dict.fromkeys(SHARPNESS_AWARE, "<= 2.1")
OF_IMAGES, OF_TABLES = ("udim-style",), ("cdsae",)
"""Methods that refuse other inputs."""

DOMAINBED = {  # x ERM, MLP 392-390-390-390, 2 domains x 64, one thread; measured on another machine and day
    "adrmx": 7.6,
    "andmask": 1.55,
    "cad": 1.29,
    "causirl-coral": 1.6,
    "causirl-mmd": 1.54,
    "cdann": 2.23,
    "condcad": 1.33,
    "coral": 1.61,
    "dann": 2.19,
    "eqrm": 1.97,
    "fish": 2.13,
    "fishr": 1.53,
    "groupdro": 1.18,
    "hgp": 1.74,
    "hutchinson": 58.3,
    "ib-erm": 1.13,
    "ib-irm": 1.29,
    "iga": 3.63,
    "irm": 1.18,
    "mixup": 1.23,
    "mldg": 1.89,
    "mmd": 1.55,
    "rdm": 1.42,
    "rsc": 1.25,
    "sam": 1.9,
    "sandmask": 8.81,
    "sd": 1.03,
    "selfreg": 5.62,
    "transfer": 11.82,
    "trm": 3.6,
    "urm": 1.59,
    "vrex": 1.08,
}


@dataclass(frozen=True)
class Setting:
    """A network and the batch of one step."""

    name: str
    network: str
    shape: tuple[int, ...]
    domains: int
    per_domain: int

    @cached_property
    def data(self) -> TrainingData:
        """Training domains of four batches each, and another one that is known without labels."""
        generator = torch.Generator().manual_seed(0)
        count = (self.domains + 1) * 4 * self.per_domain
        x = torch.randn(count, *self.shape, generator=generator)
        y = torch.arange(count) // (self.domains + 1) % CLASSES
        shift = from_arrays(x, y, torch.arange(count) % (self.domains + 1)).with_outliers(x[::2])
        return TrainingData(shift.split(shift.domains[-1], unlabelled=0.5))

    def batch(self, unlabelled: bool = False, outliers: bool = False) -> Batch:
        data, count = self.data, self.per_domain
        return data.batch(
            data.sampler(count, 0).rows(0),
            AFTER_WARMUPS,
            unlabelled=data.unlabelled_sampler(count, 0).rows(0) if unlabelled else None,
            outliers=data.outlier_sampler(count, 0).rows(0) if outliers else None,
        )

    def __str__(self) -> str:
        return f"{self.name}, {self.domains} x {self.per_domain}"


WIDE = Setting("MLP 392-390-390-390", "mlp(width=390, depth=3)", (392,), 2, 64)
SETTINGS = (
    WIDE,
    Setting("MLP 392-390-390-390", "mlp(width=390, depth=3)", (392,), 8, 32),
    Setting("CNN, 3 x 28 x 28", "cnn", (3, 28, 28), 2, 64),
)
LEARNER = Learner(learning_rate=1e-6)  # weights must not wander off while a step is repeated


def run(quick: bool = False) -> list[dict[str, Any]]:
    """CPU time of a step as a multiple of an ERM step's; `reference` is the straightforward one's multiple."""
    rounds = 1 if quick else 20
    settings = [Setting("MLP 8-4", "mlp(width=4, depth=1)", (8,), 2, 4)] if quick else SETTINGS
    rows = [row for setting in settings for row in _steps(setting, rounds)]
    return [*rows, _diagonal(settings[0], rounds, 3 if quick else 300)]


def _steps(setting: Setting, rounds: int) -> list[dict[str, Any]]:
    left_out = {"plain", *(OF_TABLES if len(setting.shape) == 3 else OF_IMAGES)}
    ours = {name: _step(setting, objective=name) for name in objectives.names() if name not in left_out}
    ours |= {name: _step(setting, update=name) for name in updates.names() if name not in left_out}
    ours |= {name: _step(setting, average=name) for name in averaging.names()}
    theirs = {f"straightforward {name}": _straightforward_step(setting, name) for name in STRAIGHTFORWARD}
    seconds = compare({**ours, **theirs}, rounds=rounds, seconds=0.02)
    erm = seconds["erm"]
    plain = seconds["straightforward erm"] * 1e3
    rows = [_row(f"erm step: {setting}", erm * 1e3, "ms", plain, None)]
    for name in ours:
        if name != "erm":
            other = seconds.get(f"straightforward {name}", math.nan) / erm
            rows.append(
                _row(f"{name} step: {setting}", seconds[name] / erm, "x ERM", other, TARGETS.get(name))
            )
            if setting == WIDE:
                rows[-1]["recorded"] = DOMAINBED.get(name)
    return rows


def _row(what: str, value: float, unit: str, reference: float, target: Any) -> dict[str, Any]:
    known = None if math.isnan(reference) else reference
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": known,
        "ratio": known and known / value,
        "target": target,
    }


def _step(
    setting: Setting, objective: str = "erm", update: str = "plain", average: str | None = None
) -> Work:
    """One training step as the training loop makes it, from a batch in memory."""
    learner = LEARNER.replace(objective=objective, network=setting.network)
    system = build_system(learner, setting.data, 0)
    batch = setting.batch(system.objective.needs_unlabelled, system.objective.needs_outliers)
    network = system.network
    if has_stages(system.objective):
        stage = TrainingStage(
            "begin", learner, setting.data, 0, network, torch.device("cpu"), _untrained(setting), None
        )
        system.objective.begin(stage)
    rule = updates.build(update).bind(system, build_optimizer(LEARNER, list(system.parameters())))
    average_of_weights = averaging.build(average) if average is not None else None
    if average_of_weights is not None:
        average_of_weights.setup(steps=1)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        rule.step(system, system.objective.prepare(batch, generator))
        if average_of_weights is not None:
            average_of_weights.observe(AFTER_WARMUPS, network, None)

    return step


def _untrained(setting: Setting) -> Train:
    """What stands for the network that a method trains before its own training: only steps are timed here."""
    return lambda learner, seed, checkpoint: _network(setting)


def _straightforward_step(setting: Setting, name: str) -> Work:
    batch, network = setting.batch(), _network(setting)
    domains = [(part.x, part.y) for part in map(batch.of_domain, range(batch.domains))]
    optimizer = build_optimizer(LEARNER, list(network.parameters()))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        STRAIGHTFORWARD[name](network, domains).backward()
        optimizer.step()

    return step


def _diagonal(setting: Setting, rounds: int, probes: int) -> dict[str, Any]:
    """The Hessian diagonal of one domain and its gradient in the features: exact, and estimated by probes."""
    part = setting.batch().of_domain(0)
    network = _network(setting)
    features = network.featurizer(part.x).detach().requires_grad_()

    def backward(diagonal: Tensor) -> None:
        diagonal.square().sum().backward()
        features.grad = None

    def exact() -> None:
        domain = torch.zeros_like(part.domain)
        logits = network.head(features)
        found = head_statistics(features, logits, part.y, domain, 1, order=["hessian_diagonal"])
        backward(found.values["hessian_diagonal"])

    def estimated() -> None:
        loss = torch.nn.functional.cross_entropy(network.head(features), part.y)
        backward(hutchinson_diagonal(loss, network.head, probes))

    seconds = compare({"exact": exact, "estimated": estimated}, rounds=min(rounds, 5))
    what = f"exact Hessian diagonal of the head against {probes} double-backward probes, 1 domain: {setting}"
    return _row(what, seconds["exact"] * 1e3, "ms", seconds["estimated"] * 1e3, 100.0)


def _network(setting: Setting) -> Network:
    torch.manual_seed(0)
    return build_network(setting.network, setting.shape, CLASSES)
