"""One stage of a student's training: some of its weights, an objective, and the learner's way to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unseen.averaging import StateDict, snapshot
from unseen.distillation.environments import Environments
from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives import Objective
from unseen.registry import averaging, updates
from unseen.shifts.sampling import derive_seed
from unseen.training.fit import diverged, log_records, seed_dropout, validation_score
from unseen.training.learner import Learner
from unseen.training.system import TrainingSystem, build_optimizer


@dataclass
class StageResult:
    """What a stage gives: the state to go on from, the averaged one if there is one, and the record.

    best      the state of the best accuracy on validation data, or the last one without such data
    averaged  the averaging's result, or None
    history   a row per (step, domain, metric)
    """

    best: StateDict
    averaged: StateDict | None
    history: list[dict[str, Any]] = field(default_factory=list)


def train_stage(
    network: Network,
    objective: Objective,
    data: Environments,
    validation: Environments | None,
    learner: Learner,
    *,
    seed: int,
    enter_training_mode: Callable[[], object],
) -> StageResult:
    """Train the weights of `network` that require a gradient, in place; batches as the learner's settings say.

    learner              its network, backbone and objective are not read
    enter_training_mode  puts the network's parts into the modes that they train in
    Raises `TrainingDiverged` for a loss that is not finite.
    """
    device = network.head.weight.device
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(learner, trained)
    system = TrainingSystem(network, objective.to(device))
    rule = updates.build(learner.update).bind(system, optimizer, clip=learner.clip)
    average = averaging.build(learner.averaging) if learner.averaging is not None else None
    if average is not None:
        average.setup(steps=learner.steps)
        average.begin(network)
    sampler = data.sampler(learner.batch_size, seed)
    evaluations = set(learner.evaluation_steps())
    best, best_score, best_step = snapshot(network), None, -1
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng():  # the caller's random state is not ours to change
        for step in range(learner.steps):
            enter_training_mode()
            for group in optimizer.param_groups:
                group["lr"] = learner.learning_rate_at(step)
            batch = data.batch(sampler.rows(step), step).to(device)
            batch = objective.prepare(batch, torch.Generator().manual_seed(derive_seed(seed, step)))
            seed_dropout(derive_seed(seed, step, 1), device)
            loss = rule.step(system, batch)
            if not torch.isfinite(loss.total):
                raise diverged(learner, loss, step, best_step, None, best)
            validation_loss = None
            if step in evaluations:
                history.extend(log_records(loss, step))
                if validation is not None:
                    rows = evaluation(network, validation, step, "validation")
                    history.extend(rows)
                    score, validation_loss = validation_score(rows)
                    if best_score is None or score > best_score:
                        best, best_score, best_step = snapshot(network), score, step
            if average is not None:
                average.observe(step, network, validation_loss)
    network.eval()
    if validation is None or learner.keep == "last":
        best = snapshot(network)
    return StageResult(best, average.result() if average is not None else None, history)


def evaluation(network: Network, data: Environments, step: int, role: str) -> list[dict[str, Any]]:
    """Accuracy and cross-entropy on each environment, one record a (domain, metric); leaves evaluation mode on."""
    logits, labels = outputs(network, data)
    losses = cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(1) == labels).float()
    records = []
    for index, name in enumerate(data.names):
        inside = data.domain == index
        common = {"step": step, "role": role, "domain": name, "n": int(inside.sum())}
        for metric, values in (("accuracy", right), ("loss", losses)):
            records.append({**common, "metric": metric, "value": float(values[inside].mean())})
    return [record for record in records if record["n"]]


@torch.no_grad()
def outputs(network: Network, data: Environments) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of all examples in evaluation mode, on the CPU."""
    network.eval()
    device = network.head.weight.device
    logits, labels = [], []
    for batch in data.in_order():
        batch = batch.to(device)
        logits.append(network(batch.x).float().cpu())
        labels.append(batch.y.cpu())
    found = torch.cat(labels)
    if found.is_floating_point():
        raise InputError("data", "have soft labels, which no accuracy is known of", "Give (N,) integers.")
    return torch.cat(logits), found
