"""What is trained: network and objective of a learner, built, checked, and given to an optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import FrozenBackbone, Network, build_network
from unseen.networks.layers import layer_parameters, train_only
from unseen.networks.simple import default_network
from unseen.objectives import Loss, Objective
from unseen.registry import Spec, objectives
from unseen.shifts import Batch, Split
from unseen.shifts.preprocessing import fit_preprocessing
from unseen.shifts.sampling import derive_seed
from unseen.training.data import TrainingData
from unseen.training.learner import Learner


class TrainingSystem(nn.Module):
    """Network and objective as one module: what Fabric wraps, so that DDP sees both sets of parameters."""

    def __init__(self, network: Network, objective: Objective):
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch) -> Loss:
        return self.objective(self.network, batch)


def build_system(learner: Learner, data: TrainingData, seed: int) -> TrainingSystem:
    """Network and objective with initial weights that depend on `seed` alone (not on global random state)."""
    split, objective = data.split, objectives.build(learner.objective)
    with seeded(seed):
        network = _build_network(learner, objective, data.preprocessing.shape, split)
        _require_what_it_needs(learner, objective, network, split)
        objective.setup(features=network.features, classes=network.classes, domains=len(split.train_domains))
    return TrainingSystem(network, objective)


def _build_network(learner: Learner, objective: Objective, shape: Any, split: Split) -> Network:
    spec = learner.network
    if spec.name == "auto" and learner.backbone is not None:
        spec = Spec.make(
            "mlp", **{"depth": 1, **spec.options}
        )  # methods that shape features need some to shape
    elif spec.name == "auto":
        spec = Spec(default_network(shape), spec.parameters)
    classes = len(split.shift.classes)
    network = objective.make_network(
        lambda: build_network(spec, shape, classes), domains=len(split.train_domains)
    )
    if learner.layers != ":":
        train_only(network, learner.layers)
    return network


def _require_what_it_needs(learner: Learner, objective: Objective, network: Network, split: Split) -> None:
    if objective.needs_domains and len(split.train_domains) < 2:
        raise InputError(
            f"objective {learner.objective.name!r}",
            f"compares training domains, but there is only one ({split.train_domains[0]!r})",
            "Train on at least two domains, or choose an objective that needs none, such as erm.",
        )
    if split.shift.weight is not None and not objective.carries_weights:
        raise InputError(
            f"objective {learner.objective.name!r}",
            "has terms that do not know weights of examples, which the data has",
            "Choose one that does, such as erm or groupdro, or leave the weights out.",
        )
    if objective.needs_unlabelled and not len(split.unlabelled):
        raise InputError(
            f"objective {learner.objective.name!r}",
            "learns from examples of the unseen distribution without labels, but the split has none",
            "Set a share of the unseen domain apart, split(unseen=..., unlabelled=0.5), or choose another objective.",
        )
    if objective.needs_outliers and split.shift.outliers is None:
        raise InputError(
            f"objective {learner.objective.name!r}",
            "learns from known outliers, but the data has none",
            "Give inputs that are of no class: shift.with_outliers(inputs), or unseen run --outliers DATA.",
        )
    support = getattr(network.featurizer, "support", 1)
    if learner.batch_size % support:
        raise InputError(
            f"network {str(network.spec)!r}",
            f"reads groups of {support} examples of one domain, which do not divide a batch of {learner.batch_size}",
            f"Give it support={learner.batch_size}.",
        )
    if objective.needs_features and not any(p.requires_grad for p in network.featurizer.parameters()):
        raise InputError(
            f"objective {learner.objective.name!r}",
            f"acts on the features, but the network {network.spec.name!r} trains none: it would do nothing",
            "Choose a network with hidden layers, such as mlp.",
        )


def check_learner(learner: Learner, split: Split) -> None:
    """Raise `InputError` when a learner cannot be trained on a split; looks at a few rows, trains nothing."""
    rows = split.train[:32]
    if learner.backbone is None:
        preprocessing = fit_preprocessing(split.shift, rows)
    else:
        preprocessing = FrozenBackbone.fit(split.shift, rows, learner.backbone)
    objective = objectives.build(learner.objective)
    with seeded(0):
        network = _build_network(learner, objective, preprocessing.shape, split)
    _require_what_it_needs(learner, objective, network, split)


def parameter_groups(learner: Learner, system: TrainingSystem) -> list[dict[str, Any]]:
    """All parameters in their order; neighbours whose layers have the same rate, `scale` times the learner's, are
    one group (layer-wise learning rate decay: Howard & Ruder 2018, arXiv 1801.06146; Clark et al. 2020)."""
    scales: dict[str, float] = {}
    if learner.layer_decay < 1:
        for height, names in enumerate(reversed(layer_parameters(system.network))):
            scales |= {f"network.{name}": learner.layer_decay**height for name in names}
    groups: list[dict[str, Any]] = []
    for name, parameter in system.named_parameters():
        scale = scales.get(name, 1.0)
        if not groups or groups[-1]["scale"] != scale:
            groups.append({"params": [], "scale": scale})
        groups[-1]["params"].append(parameter)
    return groups


def build_optimizer(
    learner: Learner, parameters: list[nn.Parameter] | list[dict[str, Any]]
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": learner.learning_rate, "weight_decay": learner.weight_decay}
    if learner.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **options)
    kind = torch.optim.AdamW if learner.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, fused=True, **options)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Run with torch's global generator seeded (initial weights, dropout), and restore it afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(*numbers))
        yield
