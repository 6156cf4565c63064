"""The training loop: straight-line code for every objective, update rule and averaging."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict, estimate_batch_statistics, has_batch_statistics, snapshot
from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.objectives import Loss
from unseen.registry import averaging, updates
from unseen.shifts import Split
from unseen.shifts.sampling import derive_seed
from unseen.training.checkpoints import load_checkpoint, save_checkpoint
from unseen.training.data import TrainingData
from unseen.training.hardware import Hardware
from unseen.training.learner import Learner
from unseen.training.predictor import Predictor
from unseen.training.stages import TrainingStage, has_stages, remove_checkpoints
from unseen.training.system import build_optimizer, build_system, parameter_groups

Progress = Callable[[int, int], None]
Observe = Callable[[int, Network], None]
SECONDS_BETWEEN_CHECKPOINTS = 5


@dataclass
class TrainingResult:
    """What training gives: the final state, a row per (step, domain, metric), and facts about the run.

    `objective` is the last state of an objective that works in stages, such as its weights of examples.
    """

    state: StateDict
    history: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    objective: StateDict = field(default_factory=dict)


def fit(
    learner: Learner,
    split: Split,
    *,
    seed: int = 0,
    data: TrainingData | None = None,
    start: StateDict | None = None,
    hardware: Hardware = Hardware(),
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Predictor:
    """Train a learner on a split and return its predictor.

    seed        decides initial weights, order of examples and all randomness of methods
    data        the split, already encoded (several learners can share it)
    start       the network's state to begin from, such as that of an earlier predictor's network; default a new one
    checkpoint  file to save to and, when it exists, to go on from; the resumed run equals an unbroken one
    progress    called as progress(steps done, steps)
    observe     called as observe(step, network) after each update, such as a `CoherenceCurve`; it must leave the
                network and torch's global generator as they were. One device only
    Raises `TrainingDiverged` when the loss becomes NaN or infinite.
    """
    data = data or TrainingData(split, learner.backbone)
    result = train(
        learner,
        data,
        seed=seed,
        start=start,
        hardware=hardware,
        checkpoint=checkpoint,
        progress=progress,
        observe=observe,
    )
    network = build_system(learner, data, seed).network
    network.load_state_dict(result.state)
    return Predictor(
        network, data.preprocessing, split.shift.classes, facts=result.facts, history=result.history
    )


def train(
    learner: Learner,
    data: TrainingData,
    *,
    seed: int = 0,
    start: StateDict | None = None,
    hardware: Hardware = Hardware(),
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> TrainingResult:
    """`fit` without the predictor around its result."""
    fabric = hardware.fabric()
    path = Path(checkpoint) if checkpoint is not None else None
    if hardware.devices > 1:
        if observe is not None:
            raise InputError(
                "observe", f"was given for {hardware.devices} devices", "Watch a run on one device."
            )
        return _train_apart(fabric, learner, data, seed, path, hardware.precision, start)
    return _train(fabric, learner, data, seed, path, hardware.precision, progress, start, observe)


def _train_apart(
    fabric: Any,
    learner: Learner,
    data: TrainingData,
    seed: int,
    checkpoint: Path | None,
    precision: str,
    start: StateDict | None,
) -> TrainingResult:
    """`_train` in processes of its own, one a device; the result comes back through a file (Fabric's queue
    would block on a state larger than a pipe holds)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result"
        # a partial, because Fabric would rewrite dataclasses among the arguments
        fabric.launch(
            functools.partial(
                _train_and_write,
                path=path,
                learner=learner,
                data=data,
                seed=seed,
                checkpoint=checkpoint,
                precision=precision,
                start=start,
            )
        )
        return TrainingResult(**torch.load(path, weights_only=True))


def _train_and_write(fabric: Any, path: Path, **options: Any) -> None:
    result = _train(fabric, progress=None, **options)
    if fabric.is_global_zero:
        torch.save(vars(result), path)
    fabric.barrier()  # a process that leaves while another still talks to it makes that one abort
    torch.distributed.destroy_process_group()


def _train(
    fabric: Any,
    learner: Learner,
    data: TrainingData,
    seed: int,
    checkpoint: Path | None,
    precision: str,
    progress: Progress | None,
    start: StateDict | None = None,
    observe: Observe | None = None,
) -> TrainingResult:
    began = time.perf_counter()
    system = build_system(learner, data, seed)
    network = system.network
    if start is not None:
        _begin_from(network, start)
    resumes = checkpoint is not None and checkpoint.exists()
    staged = has_stages(system.objective)
    if staged and not resumes:
        system.to(fabric.device)
        system.objective.begin(_stage("begin", fabric, learner, data, seed, network, checkpoint, precision))
    optimizer = build_optimizer(learner, parameter_groups(learner, system))
    wrapped, optimizer = fabric.setup(system, optimizer)
    rule = updates.build(learner.update).bind(system, optimizer, backward=fabric.backward, clip=learner.clip)
    average = averaging.build(learner.averaging) if learner.averaging is not None else None
    if average is not None:
        average.setup(steps=learner.steps)
        if not resumes:
            average.begin(network)
    sampler = data.sampler(learner.batch_size, derive_seed(seed, fabric.global_rank))
    without_labels, outliers = None, None
    if system.objective.needs_unlabelled:
        without_labels = data.unlabelled_sampler(learner.batch_size, derive_seed(seed, fabric.global_rank))
    if system.objective.needs_outliers:
        outliers = data.outlier_sampler(learner.batch_size, derive_seed(seed, fabric.global_rank))
    evaluations = set(learner.evaluation_steps())
    best: dict[str, Any] = {"score": None, "step": -1, "state": {}}
    history: list[dict[str, Any]] = []
    first, since_best, evaluation_seconds = 0, 0, 0.0

    if checkpoint is not None and resumes:
        saved = load_checkpoint(checkpoint, learner, data, seed, start)
        system.load_state_dict(saved["system"])
        optimizer.load_state_dict(saved["optimizer"])
        rule.load_state_dict(saved["update"])
        if average is not None:
            average.load_state_dict(saved["averaging"])
        best, history, first, since_best = saved["best"], saved["history"], saved["step"], saved["since_best"]

    last_saved, step = time.perf_counter(), first - 1
    with torch.random.fork_rng():  # the caller's random state is not ours to change
        for step in range(first, learner.steps):
            for group in optimizer.param_groups:
                group["lr"] = learner.learning_rate_at(step) * group["scale"]
            batch = data.batch(
                sampler.rows(step),
                step,
                fabric.device,
                unlabelled=None if without_labels is None else without_labels.rows(step),
                outliers=None if outliers is None else outliers.rows(step),
            )
            generator = torch.Generator().manual_seed(derive_seed(seed, fabric.global_rank, step))
            batch = system.objective.prepare(batch, generator)
            seed_dropout(derive_seed(seed, fabric.global_rank, step, 1), fabric.device)
            if system.objective.resets_optimizer_at(step):
                rule.reset()
            loss = rule.step(wrapped, batch)
            if not torch.isfinite(loss.total):
                raise diverged(learner, loss, step, best["step"], checkpoint, best["state"] or None)

            validation_loss = None
            if step in evaluations:
                started = time.perf_counter()
                rows = evaluate(network, data, step, fabric.device)
                history.extend(rows)
                history.extend(log_records(loss, step))
                score, validation_loss = validation_score(rows)
                since_best += 1
                if best["score"] is None or score > best["score"]:
                    best, since_best = {"score": score, "step": step, "state": snapshot(network)}, 0
                evaluation_seconds += time.perf_counter() - started
            if average is not None:
                average.observe(step, network, validation_loss)
            if (
                checkpoint is not None
                and step in evaluations
                and time.perf_counter() - last_saved > SECONDS_BETWEEN_CHECKPOINTS
            ):
                save_checkpoint(checkpoint, fabric, learner, data, seed, start, {
                    "step": step + 1, "system": system.state_dict(), "optimizer": optimizer.state_dict(),
                    "update": rule.state_dict(), "averaging": average.state_dict() if average else {},
                    "best": best, "history": history, "since_best": since_best,
                })  # fmt: skip
                last_saved = time.perf_counter()
            if observe is not None:
                observe(step, network)
            if progress is not None:
                progress(step + 1, learner.steps)
            if learner.patience is not None and since_best >= learner.patience:
                break

    def settled(averaged: StateDict) -> StateDict:
        """The network's state with averaged weights; batch statistics are estimated anew."""
        network.load_state_dict(averaged)
        if has_batch_statistics(network):
            estimate_batch_statistics(
                network,
                lambda: (data.batch(sampler.rows(i), i, fabric.device).x for i in range(min(50, step + 1))),
            )
        return snapshot(network)

    def score_of(averaged: StateDict) -> float:
        settled(averaged)
        return validation_score(evaluate(network, data, step, fabric.device))[0]

    chosen = average.choose(score_of) if average is not None and average.chooses else {}
    state = average.result() if average is not None else None
    averaged = state is not None
    if state is None:
        state = best["state"] if learner.keep == "best" else snapshot(network)
    elif has_batch_statistics(network):
        state = settled(state)
    if staged:
        network.load_state_dict(state)
        system.objective.finish(_stage("finish", fabric, learner, data, seed, network, checkpoint, precision))
        state = snapshot(network)
        if checkpoint is not None and fabric.is_global_zero:
            remove_checkpoints(checkpoint)
    return TrainingResult(
        state={name: value.cpu() for name, value in state.items()},
        history=history,
        facts={
            **run_facts(learner, data, seed, step, best["step"], averaged),
            **chosen,
            "seconds": round(time.perf_counter() - began, 3),
            "evaluation_seconds": round(evaluation_seconds, 3),
        },
        objective={n: v.cpu() for n, v in system.objective.state_dict().items()} if staged else {},
    )


def _begin_from(network: Network, start: StateDict) -> None:
    try:
        network.load_state_dict(start)
    except RuntimeError as error:
        reason = str(error).replace("\n\t", " ").rstrip(". ")
        raise InputError(
            "start", f"is no state of the learner's network ({reason})", "Give the state of one like it."
        ) from None


def _stage(
    kind: Literal["begin", "finish"],
    fabric: Any,
    learner: Learner,
    data: TrainingData,
    seed: int,
    network: Network,
    checkpoint: Path | None,
    precision: str,
) -> TrainingStage:
    """With several devices each process works through the stage by itself, with the same seed; what the first
    one comes to is the result, because DDP and the writing of results start from its weights and buffers."""
    device: torch.device = fabric.device

    def alone(learner: Learner, seed: int, checkpoint: Path | None) -> Network:
        from lightning_fabric import Fabric

        devices = 1 if device.index is None else [device.index]
        single: Any = Fabric(accelerator=device.type, devices=devices, precision=precision)  # type: ignore[arg-type]
        result = _train(single, learner, data, seed, checkpoint, precision, None)
        trained = build_system(learner, data, seed).network
        trained.load_state_dict(result.state)
        return trained.to(device)

    kept = checkpoint if fabric.is_global_zero else None
    return TrainingStage(kind, learner, data, seed, network, device, alone, kept)


def run_facts(
    learner: Learner, data: TrainingData, seed: int, step: int, best: int, averaged: bool
) -> dict[str, Any]:
    """What a run was, and which weights it gave."""
    kept = f"step {best + 1}" if learner.keep == "best" else "last step"
    return {
        "learner": learner.to_json(),
        "seed": seed,
        "steps": step + 1,
        "kept": "averaged" if averaged else kept,
        "train_domains": list(data.split.train_domains),
        "unseen_domains": list(data.split.unseen_domains),
    }


def evaluate(network: Network, data: TrainingData, step: int, device: Any) -> list[dict[str, Any]]:
    """Accuracy and loss on the ID validation rows of each training domain, one record a (domain, metric)."""
    bank = data.bank(network, "validation", device)
    assert bank.labels is not None and bank.domain is not None
    losses = nn.functional.cross_entropy(bank.logits, bank.labels, reduction="none")
    records = []
    for index in bank.domain.unique().tolist():
        inside = bank.domain == index
        common = {"step": step, "role": "validation", "domain": bank.domains[index], "n": int(inside.sum())}
        records.append({**common, "metric": "accuracy", "value": float(bank.correct[inside].float().mean())})
        records.append({**common, "metric": "loss", "value": float(losses[inside].mean())})
    return records


def validation_score(records: list[dict[str, Any]]) -> tuple[float, float]:
    """ID validation accuracy, averaged over domains, with the loss as tie-breaker; and the loss itself."""
    accuracy = [r["value"] for r in records if r["metric"] == "accuracy"]
    loss = [r["value"] for r in records if r["metric"] == "loss"]
    mean_loss = sum(loss) / len(loss)
    return sum(accuracy) / len(accuracy) - 1e-6 * min(mean_loss, 1e3), mean_loss


def log_records(loss: Loss, step: int) -> list[dict[str, Any]]:
    values: dict[str, Tensor] = {"total": loss.total, **loss.parts}
    return [
        {
            "step": step,
            "role": "train",
            "domain": "",
            "n": 0,
            "metric": f"loss/{name}",
            "value": float(value.detach()),
        }
        for name, value in values.items()
    ]


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout on `device` draws from; `torch.manual_seed` costs 60 times as much."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def diverged(
    learner: Learner,
    loss: Loss,
    step: int,
    best: int,
    checkpoint: Path | None,
    state: StateDict | None = None,
) -> TrainingDiverged:
    kept = f" Kept: the best state, of step {best + 1}" if best >= 0 else " No state was measured before"
    kept += f", and the checkpoint {checkpoint}." if checkpoint is not None and checkpoint.exists() else "."
    parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in loss.parts.items())
    error = TrainingDiverged(
        f"learner {learner.name!r}: the loss became {float(loss.total.detach())} at step {step + 1} of {learner.steps}"
        + (f" ({parts})" if parts else "")
        + f". Lower the learning rate ({learner.learning_rate:g}) or the penalty, or clip gradients."
        + kept
    )
    error.state = state
    return error
