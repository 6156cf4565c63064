"""The training loop for many runs at once: `fit._train`, step by step, on stacked parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict
from unseen.errors import TrainingDiverged
from unseen.objectives import Loss, Objective
from unseen.registry import averaging, updates
from unseen.training.examples import StackedExamples
from unseen.training.fit import TrainingResult, diverged, log_records, run_facts, validation_score
from unseen.training.grouping import Run, stream
from unseen.training.numbers import numbers
from unseen.training.stacked import StackedOptimizer, StackedSystem
from unseen.training.system import TrainingSystem, build_system

Outcome = TrainingResult | TrainingDiverged


@dataclass
class _Record:
    """What one run has come to; with an outcome it takes no further part, though its numbers still move."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float | None = None
    best_step: int = -1
    since_best: int = 0
    outcome: Outcome | None = None


def train_program(runs: list[Run], device: torch.device) -> list[Outcome]:
    """Train runs that share a structure and lie stream after stream, equally many in each (see `cut`)."""
    began = time.perf_counter()
    learner, records = runs[0].learner, [_Record() for _ in runs]
    systems = [build_system(run.learner, run.data, run.seed) for run in runs]
    streams = len({stream(run) for run in runs})
    first = slice(None, None, len(runs) // streams)  # the first run of each stream
    data, seeds = [run.data for run in runs[first]], [run.seed for run in runs[first]]
    objectives = [system.objective for system in systems[first]]
    examples = StackedExamples(data, seeds, objectives, learner.batch_size, device)
    system = StackedSystem(systems, streams, _differing(systems), device)
    rates = torch.tensor([[r.learner.learning_rate_at(s) for r in runs] for s in range(learner.steps)])
    rates, decays = rates.to(device), torch.tensor([r.learner.weight_decay for r in runs], device=device)
    optimizer = StackedOptimizer(learner.optimizer, list(system.parameters.values()), rates[0], decays)
    rule = updates.build(learner.update).bind(system.template, optimizer, clip=learner.clip, stacked=True)  # type: ignore[arg-type]
    resets = _resets(systems, learner.steps)
    average = _Averages(runs, system.network_state()) if learner.averaging is not None else None
    evaluations, last, evaluation_seconds = set(learner.evaluation_steps()), learner.steps - 1, 0.0
    best = {name: value.clone() for name, value in system.network_state().items()}

    for step, batch in enumerate(examples.batches(learner.steps)):
        optimizer.param_groups[0]["lr"] = rates[step]
        if step in resets:
            rule.reset(resets[step].to(device))
        parts = rule.step(system, batch).parts
        _note_diverged(runs, records, parts, step, best)
        losses: list[float] | None = None
        if step in evaluations:
            started = time.perf_counter()
            validated = _validate(runs, system, examples, step)
            losses = [validation_score(rows)[1] for rows in validated]
            better = _record(records, validated, parts, step)
            for name, value in system.network_state().items():
                best[name][better] = value[better]
            evaluation_seconds += time.perf_counter() - started
        if average is not None:
            average.observe(step, system.network_state(), losses)
        if step in evaluations:
            for index, (run, record) in enumerate(zip(runs, records, strict=True)):
                patience = run.learner.patience
                stops = step == last or (patience is not None and record.since_best >= patience)
                if stops and record.outcome is None:
                    averaged = average.result(index) if average is not None else None
                    kept = best if run.learner.keep == "best" else system.network_state()
                    state = averaged or {name: value[index].clone() for name, value in kept.items()}
                    record.outcome = _result(run, record, state, step, averaged is not None)
        if all(record.outcome is not None for record in records):
            break

    for record in records:
        if isinstance(record.outcome, TrainingResult):
            record.outcome.facts["seconds"] = round((time.perf_counter() - began) / len(runs), 3)
            record.outcome.facts["evaluation_seconds"] = round(evaluation_seconds / len(runs), 3)
    return [record.outcome for record in records]  # type: ignore[misc]


def _differing(systems: list[TrainingSystem]) -> dict[str, list[float]]:
    """Numbers of the objectives that are not the same in all runs."""
    found = [numbers(system.objective) for system in systems]
    columns = {path: [own[path] for own in found] for path in found[0]}
    return {path: values for path, values in columns.items() if len(set(values)) > 1}


def _resets(systems: list[TrainingSystem], steps: int) -> dict[int, Tensor]:
    """Update -> the runs whose optimizer forgets its moments before it."""
    found: dict[int, list[int]] = {}
    for index, system in enumerate(systems):
        if type(system.objective).resets_optimizer_at is not Objective.resets_optimizer_at:
            for step in filter(system.objective.resets_optimizer_at, range(steps)):
                found.setdefault(step, []).append(index)
    return {step: torch.tensor(indices) for step, indices in found.items()}


def _loss_of(parts: Mapping[str, Tensor], index: int) -> Loss:
    own = {name: value[index] for name, value in parts.items()}
    return Loss(own.pop("total"), own)


def _note_diverged(
    runs: list[Run], records: list[_Record], parts: Mapping[str, Tensor], step: int, best: StateDict
) -> None:
    finite = torch.isfinite(parts["total"])
    if finite.all():
        return
    for index in (~finite).nonzero().flatten().tolist():
        run, record, loss = runs[index], records[index], _loss_of(parts, index)
        if record.outcome is None:
            state = {n: v[index].clone() for n, v in best.items()} if record.best_step >= 0 else None
            record.outcome = diverged(run.learner, loss, step, record.best_step, None, state)


def _record(
    records: list[_Record], validated: list[list[dict[str, Any]]], parts: Mapping[str, Tensor], step: int
) -> list[int]:
    """Append to the histories; return the runs that are better than ever before."""
    better = []
    parts = {name: value.detach().cpu() for name, value in parts.items()}
    for index, (record, rows) in enumerate(zip(records, validated, strict=True)):
        if record.outcome is not None:
            continue
        record.history += [*rows, *log_records(_loss_of(parts, index), step)]
        record.since_best += 1
        score = validation_score(rows)[0]
        if record.best_score is None or score > record.best_score:
            record.best_score, record.best_step, record.since_best = score, step, 0
            better.append(index)
    return better


def _validate(
    runs: list[Run], system: StackedSystem, examples: StackedExamples, step: int, size: int = 512
) -> list[list[dict[str, Any]]]:
    """`fit.evaluate` of every run, over all runs of a data set at once."""
    found: list[list[dict[str, Any]]] = []
    for _, group in groupby(runs, key=lambda run: id(run.data)):
        members = list(group)
        data, own = members[0].data, slice(len(found), len(found) + len(members))
        rows, shift = data.split.validation, data.split.shift
        parts = [
            system.logits(examples.inputs(examples.rows_of(data, some)), own) for some in rows.split(size)
        ]
        logits = torch.cat(parts, 1).float().cpu().mT.contiguous()  # (runs, C, N): see `_FastWhenStacked`
        labels = shift.labels[rows].expand(len(members), -1)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        correct = (logits.argmax(1) == labels).float()
        records: list[list[dict[str, Any]]] = [[] for _ in members]
        for index in shift.domain[rows].unique().tolist():
            inside = shift.domain[rows] == index
            common = {
                "step": step,
                "role": "validation",
                "domain": shift.domains[index],
                "n": int(inside.sum()),
            }
            values = {"accuracy": correct, "loss": losses}
            for metric, each in values.items():
                for record, value in zip(records, each[:, inside].mean(1).tolist(), strict=True):
                    record.append({**common, "metric": metric, "value": value})
        found += records
    return found


class _State:
    """A state in the place of a network, for averaging."""

    def __init__(self, state: StateDict):
        self.state_dict = lambda: state


class _Averages:
    """Averaging of every run: of the stack as a whole where that is the same, else one by one."""

    def __init__(self, runs: list[Run], start: StateDict):
        spec, steps = runs[0].learner.averaging, runs[0].learner.steps
        first = averaging.build(spec)  # type: ignore[arg-type]
        self.whole = first.elementwise
        self.each = [first] if self.whole else [averaging.build(spec) for _ in runs]  # type: ignore[arg-type]
        for index, average in enumerate(self.each):
            average.setup(steps=steps)
            average.begin(_State(self._own(start, index)))  # type: ignore[arg-type]

    def observe(self, step: int, state: StateDict, losses: list[float] | None) -> None:
        for index, average in enumerate(self.each):
            loss = None if self.whole or losses is None else losses[index]
            average.observe(step, _State(self._own(state, index)), loss)  # type: ignore[arg-type]

    def _own(self, state: StateDict, index: int) -> StateDict:
        return state if self.whole else {name: value[index] for name, value in state.items()}

    def result(self, index: int) -> StateDict | None:
        state = self.each[0 if self.whole else index].result()
        if state is None:
            return None
        return {name: (value[index] if self.whole else value).clone() for name, value in state.items()}


def _result(run: Run, record: _Record, state: StateDict, step: int, averaged: bool) -> TrainingResult:
    facts = run_facts(run.learner, run.data, run.seed, step, record.best_step, averaged)
    return TrainingResult({name: value.cpu() for name, value in state.items()}, record.history, facts)
