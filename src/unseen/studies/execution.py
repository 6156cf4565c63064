"""Run a plan's cells: many at once as one program where that works, else on all cores or on Ray."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cloudpickle
import torch

from unseen.errors import InputError, MissingExtra, TrainingDiverged, UnseenError
from unseen.registry import REGISTRIES, Spec, load_plugin, plugins
from unseen.shifts import Shift
from unseen.studies.evaluate import evaluate
from unseen.studies.plan import Cell, Plan
from unseen.studies.store import CellResult, Store
from unseen.training import Hardware
from unseen.training.batched import Run, can_batch, group_runs, train_many
from unseen.training.data import TrainingData
from unseen.training.fit import TrainingResult, build_system, train

Engine = Literal["auto", "serial", "local", "batched", "ray"]
ENGINES: tuple[Engine, ...] = ("auto", "serial", "local", "batched", "ray")
Progress = Callable[[int, int], None]
"""Called as progress(cells done, cells in all)."""


def execute(
    plan: Plan,
    store: Store,
    *,
    engine: Engine = "auto",
    workers: int | None = None,
    hardware: Hardware = Hardware(),
    progress: Progress | None = None,
) -> None:
    """Run every cell that the store does not have yet; each is written as soon as it is finished.

    engine   auto: cells that can be trained as one program are, the others run on a local process pool;
             serial: one by one in this process; local, batched, ray: that way only
    workers  processes (local) or Ray tasks at a time; default one a core
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}", "is not known", f"Choose one of {', '.join(ENGINES)}.")
    finished = store.finished()
    pending = [cell for cell in plan.cells if cell.key not in finished]
    done = len(plan.cells) - len(pending)
    tell = progress or (lambda done, total: None)
    tell(done, len(plan.cells))
    for results in _results(pending, plan, engine, workers, hardware):
        store.add(results)
        done += len(results)
        tell(done, len(plan.cells))


Finished = list[tuple[Cell, CellResult]]


def _results(
    cells: list[Cell], plan: Plan, engine: Engine, workers: int | None, hardware: Hardware
) -> Iterator[Finished]:
    rest = cells
    if engine in ("auto", "batched"):
        together, rest = _separate(cells, plan.shift, hardware)
        if engine == "batched" and rest:
            why = can_batch(rest[0].learner, _data(plan.shift, rest[0]))
            raise InputError(
                f"learner {rest[0].method!r}", f"cannot be trained in a batch: {why}", "Use --engine auto."
            )
        yield from _batched(together, plan, hardware)
    workers = min(workers or os.cpu_count() or 1, max(1, len(rest)))
    if engine == "ray":
        yield from _on_ray(rest, plan, workers, hardware)
    elif engine == "serial" or workers == 1 or len(rest) <= 1:
        for cell in rest:
            yield [(cell, run_cell(cell, plan.shift, plan.detectors, hardware))]
    else:
        yield from _on_processes(rest, plan, workers, hardware)


# One cell ------------------------------------------------------------------------------------------------


def run_cell(cell: Cell, shift: Shift, detectors: tuple[str, ...], hardware: Hardware) -> CellResult:
    """Train and judge one cell. A failure of the method is a result (its message), not an exception."""
    began = time.perf_counter()
    try:
        data = _data(shift, cell)
        trained = train(cell.learner, data, seed=cell.seed, hardware=hardware)
        return _judged(cell, data, trained, detectors, time.perf_counter() - began)
    except UnseenError as error:
        return CellResult(cell.key, error=str(error), seconds=time.perf_counter() - began)


def _judged(
    cell: Cell, data: TrainingData, trained: TrainingResult, detectors: tuple[str, ...], seconds: float
) -> CellResult:
    network = build_system(cell.learner, data, cell.seed).network
    network.load_state_dict(trained.state)
    records, arrays = evaluate(network, data, detectors)
    return CellResult(cell.key, [*trained.history, *records], arrays, trained.facts, seconds)


def _data(shift: Shift, cell: Cell) -> TrainingData:
    return _cached_data(
        _Same(shift), cell.unseen, cell.after, cell.validation, cell.seed, cell.learner.backbone
    )


@dataclass(frozen=True)
class _Same:
    """A shift as a cache key: equal when it is the same object."""

    shift: Shift

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.shift is self.shift

    def __hash__(self) -> int:
        return id(self.shift)


@lru_cache(maxsize=32)
def _cached_data(
    same: _Same, unseen: tuple[str, ...], after: Any, validation: float, seed: int, backbone: Spec | None
) -> TrainingData:
    return TrainingData(same.shift.split(unseen, after=after, validation=validation, seed=seed), backbone)


# Many cells as one program -------------------------------------------------------------------------------


def _separate(cells: list[Cell], shift: Shift, hardware: Hardware) -> tuple[list[Cell], list[Cell]]:
    together: list[Cell] = []
    rest: list[Cell] = []
    for cell in cells:
        fits = hardware == Hardware() and can_batch(cell.learner, _data(shift, cell)) is None
        (together if fits else rest).append(cell)
    return together, rest


def _batched(cells: list[Cell], plan: Plan, hardware: Hardware) -> Iterator[Finished]:
    runs = [Run(cell.learner, _data(plan.shift, cell), cell.seed) for cell in cells]
    cell_of = {id(run): cell for run, cell in zip(runs, cells, strict=True)}
    for group in group_runs(runs):
        began = time.perf_counter()
        results = train_many(group, hardware=hardware)
        share = (time.perf_counter() - began) / len(group)
        finished: Finished = []
        for run, trained in zip(group, results, strict=True):
            cell = cell_of[id(run)]
            if isinstance(trained, TrainingDiverged):
                finished.append((cell, CellResult(cell.key, error=str(trained), seconds=share)))
                continue
            try:
                finished.append((cell, _judged(cell, run.data, trained, plan.detectors, share)))
            except UnseenError as error:
                finished.append((cell, CellResult(cell.key, error=str(error), seconds=share)))
        yield finished


# Many processes, many machines ---------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _payload(plan: Plan, hardware: Hardware) -> bytes:
    """What a worker process must know: plug-in files by path, methods of notebooks by value."""
    external = {kind: registry.external() for kind, registry in REGISTRIES.items()}
    return cloudpickle.dumps((plan.detectors, hardware, tuple(plugins), external))


def _start_worker(shift: Shift, payload: bytes) -> None:
    torch.set_num_threads(1)
    detectors, hardware, plugin_files, external = cloudpickle.loads(payload)
    for path in plugin_files:
        load_plugin(path)
    for kind, entries in external.items():
        REGISTRIES[kind].adopt(entries)
    _worker.update(shift=shift, detectors=detectors, hardware=hardware)


def _run_in_worker(cell: Cell) -> CellResult:
    return run_cell(cell, _worker["shift"], _worker["detectors"], _worker["hardware"])


def _on_processes(cells: list[Cell], plan: Plan, workers: int, hardware: Hardware) -> Iterator[Finished]:
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(plan.shift, _payload(plan, hardware)),
    )
    futures = {pool.submit(_run_in_worker, cell): cell for cell in cells}
    try:
        for future in as_completed(futures):
            yield [(futures[future], future.result())]
    except BrokenProcessPool:
        raise UnseenError(
            "a worker process died (out of memory, or killed). Finished cells are kept: run again to go on, "
            "with fewer --workers if memory was short."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(cells: list[Cell], plan: Plan, workers: int, hardware: Hardware) -> Iterator[Finished]:
    try:
        import ray
    except ImportError:
        raise MissingExtra("engine 'ray'", "scale") from None

    started_here = not ray.is_initialized()
    if started_here:
        # RAY_ADDRESS, when set, names a running cluster; otherwise this machine is one
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    try:
        shift, payload = ray.put(plan.shift), _payload(plan, hardware)

        @ray.remote(num_cpus=1, num_gpus=hardware.devices if hardware.accelerator in ("gpu", "cuda") else 0)
        def run(cell: Cell, shift: Shift) -> CellResult:
            _start_worker(shift, payload)
            return _run_in_worker(cell)

        futures = {run.remote(cell, shift): cell for cell in cells}
        waiting = list(futures)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            for future in ready:
                yield [(futures[future], ray.get(future))]
    finally:
        if started_here:
            ray.shutdown()


# How long it will take -----------------------------------------------------------------------------------


def estimate_seconds(plan: Plan, store: Store, workers: int | None = None) -> float:
    """Rough time for the cells that are missing, from a few steps of each kind of learner."""
    finished = store.finished()
    pending = [cell for cell in plan.cells if cell.key not in finished]
    workers = min(workers or os.cpu_count() or 1, max(1, len(pending)))
    kinds: dict[tuple[str, int], list[Cell]] = {}
    for cell in pending:
        kinds.setdefault((cell.method, len(cell.unseen)), []).append(cell)
    total = 0.0
    for cells in kinds.values():
        data = _data(plan.shift, cells[0])
        trial = cells[0].learner.replace(steps=3, evaluations=1, patience=None)
        if can_batch(cells[0].learner, data) is None:
            runs = [
                Run(trial.replace(learning_rate=c.learner.learning_rate), _data(plan.shift, c), c.seed)
                for c in cells
            ]
            total += _seconds(lambda runs=runs: train_many(runs)) / 3 * cells[0].learner.steps
        else:
            one = _seconds(lambda trial=trial, data=data: train(trial, data)) / 3 * cells[0].learner.steps
            total += one * math.ceil(len(cells) / workers)
    return total


def _seconds(function: Callable[[], Any]) -> float:
    function()  # the first call pays for imports and allocations
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
