"""Bonsai: an objective whose training begins from rich features (RFC) instead of new weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.freezing import freeze as frozen
from unseen.objectives.base import Loss, Objective
from unseen.objectives.example_weights import Table
from unseen.objectives.rich_features import RichFeatures, initialize
from unseen.objectives.stages import Stage
from unseen.objectives.whole_data import WholeData
from unseen.registry import Spec, objectives
from unseen.shifts import Batch


@objectives.register(
    "bonsai",
    summary="Another objective (`base`), begun from features that also explain what plain training gets wrong",
    paper="Zhang et al. 2022, arXiv 2203.15516",
    search={"freeze": ("choice", [False, True]), "first": ("choice", [0.02, 0.05, 0.2, 0.5])},
)
class Bonsai(Objective):
    """Rich feature construction, then `base` from there: "bonsai(base='vrex(penalty_weight=100, warmup_steps=0)')".

    base    what is minimised: any objective that trains one network. A warm-up of its penalty is not needed
    freeze  train the head alone: RFC (cf) of the paper, the steadier one
    first   length of round 0, as a share of the run's steps. Few: it must not learn the noise of the labels
    length  length of each later round, and of the distillation, likewise (paper, Colored MNIST: 51, 501, 501
            before 1001 steps)
    rounds, discovery, targets, balance, by_domain, stop, temperature
            as for `RichFeatures`, whose discovery="groupdro" is for batches of few examples

    Rounds are trained by Adam with the learner's learning rate, weight decay and batch size, all domains pooled.
    When a round gets every training example right, a warning says so and no further one is trained. A run that
    is killed in a round begins anew. The buffer `report` has a row for each round: accuracy, worst group, shared
    errors, kept and imitation, see `Round`, with -1 for None.
    """

    def __init__(
        self,
        base: str | Spec = "erm",
        rounds: int = 2,
        freeze: bool = False,
        first: float = 0.2,
        length: float = 1.0,
        discovery: Literal["hardmax", "groupdro"] = "hardmax",
        targets: Literal["hard", "soft"] = "hard",
        balance: bool = True,
        by_domain: bool = False,
        stop: bool = True,
        temperature: float = 1.0,
    ):
        super().__init__()
        for name, share in (("first", first), ("length", length)):
            if not 0 < share < float("inf"):
                raise InputError(
                    name, f"is {share}", "Give a positive share of the run's steps, such as 0.2."
                )
        self.base_spec = str(Spec.of(base))
        self.base: Objective = objectives.build(base)
        if isinstance(self.base, Bonsai):
            raise InputError("base of bonsai", "is bonsai itself", "Raise `rounds` instead.")
        if freeze and self.base.needs_features:
            raise InputError(
                f"base {self.base_spec!r} of bonsai",
                "acts on the features, which freeze=True holds fast: it would do nothing",
                "Leave freeze away, or choose an objective that acts on the head, such as vrex.",
            )
        self.freeze, self.first, self.length, self.report = freeze, first, length, Table()
        self.options: dict[str, Any] = {
            "rounds": rounds,
            "discovery": discovery,
            "targets": targets,
            "balance": balance,
            "by_domain": by_domain,
            "stop": stop,
            "temperature": temperature,
        }
        RichFeatures(self._new_network, **self.options)  # refuses wrong settings before any training
        for need in (
            "needs_domains",
            "needs_unlabelled",
            "needs_outliers",
            "several_views",
            "carries_weights",
        ):
            setattr(self, need, getattr(self.base, need))
        self._build: Callable[[], Network] | None = None

    def _new_network(self) -> Network:
        assert self._build is not None
        return self._build()

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        network, self._build = self.base.make_network(build, domains=domains), build
        if type(self.base).make_network is not Objective.make_network:
            raise InputError(
                f"base {self.base_spec!r} of bonsai",
                "makes a network of its own, which the rich features of one do not fit",
                "Choose an objective that trains the learner's network, such as erm, irm or vrex.",
            )
        if not any(p.requires_grad for p in network.featurizer.parameters()):
            raise InputError(
                "bonsai",
                f"is to find features, but the network {getattr(network, 'spec', 'given')!s} trains none",
                "Choose a network with hidden layers, such as mlp.",
            )
        if self.freeze:
            frozen(network.featurizer)
        return network

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.base.setup(features=features, classes=classes, domains=domains)

    def begin(self, stage: Stage) -> None:
        rich = RichFeatures(
            self._new_network,
            first_steps=max(1, round(self.first * stage.steps)),
            steps=max(1, round(self.length * stage.steps)),
            batch_size=stage.batch_size,
            learning_rate=stage.learning_rate,
            l2=stage.weight_decay / 2,
            overfitted="warn",
            seed=int(torch.randint(2**62, (), generator=stage.generator())),
            **self.options,
        ).fit(WholeData.of_stage(stage))
        initialize(stage.network, rich)
        rows = [(r.accuracy, r.worst_group, r.shared_errors, r.kept, r.imitation) for r in rich.report]
        values = [[-1.0 if value is None else float(value) for value in row] for row in rows]
        self.report.fill(torch.tensor(values), stage.device)
        self.base.begin(stage)

    def finish(self, stage: Stage) -> None:
        self.base.finish(stage)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return self.base.prepare(batch, generator)

    def resets_optimizer_at(self, step: int) -> bool:
        return self.base.resets_optimizer_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        return self.base(model, batch)
