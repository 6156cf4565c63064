"""Run a plan's cells: many at once as one program where that works, else on all cores or on Ray."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

import cloudpickle
import torch

from unseen.errors import InputError, MissingExtra, TrainingDiverged, UnseenError
from unseen.networks import Network
from unseen.registry import REGISTRIES, load_plugin, plugins
from unseen.shifts import Shift
from unseen.studies.evaluate import evaluate
from unseen.studies.plan import Cell, Judging, Plan
from unseen.studies.store import CellResult, Store
from unseen.training import Hardware
from unseen.training.batched import Run, can_batch, group_runs, train_many
from unseen.training.data import TrainingData
from unseen.training.fit import TrainingResult, train
from unseen.training.system import build_system

Engine = Literal["auto", "serial", "local", "batched", "ray"]
ENGINES: tuple[Engine, ...] = ("auto", "serial", "local", "batched", "ray")
Progress = Callable[[int, int], None]
"""Called as progress(cells done, cells in all)."""


def check_engine(engine: str, workers: int | None = None) -> None:
    """Raise `InputError` or `MissingExtra` for an engine or a number of workers that cannot be had."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}", "is not known", f"Choose one of {', '.join(ENGINES)}.")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtra("engine 'ray'", "scale")
    if workers is not None and workers < 1:
        raise InputError("workers", f"are {workers}", "Give a whole number from 1; without it, one a core.")


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
    check_engine(engine, workers)
    hardware.fabric()  # raises for hardware that is not there, before that becomes the result of every cell
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
    rest, data = cells, _Data(plan.shift)
    if engine in ("auto", "batched"):
        together, rest = _separate(cells, data, hardware)
        if engine == "batched" and rest:
            why = can_batch(rest[0].learner, data.of(rest[0]))
            raise InputError(
                f"learner {rest[0].method!r}", f"cannot be trained in a batch: {why}", "Use --engine auto."
            )
        yield from _batched(together, data, plan, hardware)
    workers = min(workers or os.cpu_count() or 1, max(1, len(rest)))
    if engine == "ray":
        yield from _on_ray(rest, plan, workers, hardware)
    elif engine == "serial" or workers == 1 or len(rest) <= 1:
        for cell in rest:
            yield [(cell, run_cell(cell, data, plan.judging, hardware))]
    else:
        yield from _on_processes(rest, plan, workers, hardware)


# One cell ------------------------------------------------------------------------------------------------


def run_cell(
    cell: Cell,
    data_of: _Data,
    judging: Judging,
    hardware: Hardware,
) -> CellResult:
    """Train and judge one cell. A failure of the method is a result (its message), not an exception."""
    began = time.perf_counter()
    try:
        data = data_of.of(cell)
        trained = train(cell.learner, data, seed=cell.seed, hardware=hardware)
        network = build_system(cell.learner, data, cell.seed).network
        return _judged(cell, network, data, trained, judging, time.perf_counter() - began)
    except UnseenError as error:
        return CellResult(cell.key, error=str(error), seconds=time.perf_counter() - began)


def _judged(
    cell: Cell,
    network: Network,
    data: TrainingData,
    trained: TrainingResult,
    judging: Judging,
    seconds: float,
) -> CellResult:
    network.load_state_dict(trained.state)
    records, arrays, facts = evaluate(network, data, *judging)
    return CellResult(cell.key, [*trained.history, *records], arrays, {**trained.facts, **facts}, seconds)


class _Data:
    """Encoded splits of a shift, each made once: cells that differ in the learner alone share them."""

    def __init__(self, shift: Shift, most: int | None = None):
        self.shift, self.most = shift, most
        self._made: dict[Any, TrainingData] = {}

    def of(self, cell: Cell) -> TrainingData:
        key = (cell.unseen, cell.after, cell.validation, cell.unlabelled, cell.seed, cell.learner.backbone)
        if key not in self._made:
            if self.most is not None and len(self._made) >= self.most:
                self._made.pop(next(iter(self._made)))
            split = self.shift.split(
                cell.unseen,
                after=cell.after,
                validation=cell.validation,
                unlabelled=cell.unlabelled,
                seed=cell.seed,
            )
            self._made[key] = TrainingData(split, cell.learner.backbone)
        return self._made[key]


# Many cells as one program -------------------------------------------------------------------------------


def _separate(cells: list[Cell], data: _Data, hardware: Hardware) -> tuple[list[Cell], list[Cell]]:
    """Cells that can be trained together, and the others; one cell a method and number of domains is asked."""
    fits: dict[Any, bool] = {}
    together: list[Cell] = []
    rest: list[Cell] = []
    for cell in cells:
        kind = (cell.method, cell.learner.network, cell.learner.backbone, len(cell.unseen))
        if kind not in fits:
            fits[kind] = hardware == Hardware() and can_batch(cell.learner, data.of(cell)) is None
        (together if fits[kind] else rest).append(cell)
    return together, rest


def _batched(cells: list[Cell], data: _Data, plan: Plan, hardware: Hardware) -> Iterator[Finished]:
    runs = [Run(cell.learner, data.of(cell), cell.seed) for cell in cells]
    cell_of = {id(run): cell for run, cell in zip(runs, cells, strict=True)}
    for group in group_runs(runs):
        began = time.perf_counter()
        results = train_many(group, hardware=hardware)
        share = (time.perf_counter() - began) / len(group)
        network = build_system(group[0].learner, group[0].data, 0).network  # lends each run its architecture
        finished: Finished = []
        for run, trained in zip(group, results, strict=True):
            cell = cell_of[id(run)]
            if isinstance(trained, TrainingDiverged):
                finished.append((cell, CellResult(cell.key, error=str(trained), seconds=share)))
                continue
            try:
                judged = _judged(cell, network, run.data, trained, plan.judging, share)
                finished.append((cell, judged))
            except UnseenError as error:
                finished.append((cell, CellResult(cell.key, error=str(error), seconds=share)))
        yield finished


# Many processes, many machines ---------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _payload(plan: Plan, hardware: Hardware) -> bytes:
    """What a worker process must know: the data, plug-in files by path, methods of notebooks by value.

    As bytes: PyTorch's own way of sending tensors to a process through shared memory fails for empty ones.
    """
    external = {kind: registry.external() for kind, registry in REGISTRIES.items()}
    return cloudpickle.dumps((plan.shift, plan.judging, hardware, tuple(plugins), external))


def _start_worker(payload: bytes) -> None:
    torch.set_num_threads(1)
    # bytes that the parent process has just made; nothing that was read from a file is ever unpickled
    shift, judging, hardware, plugin_files, external = cloudpickle.loads(payload)
    for path in plugin_files:
        load_plugin(path)
    for kind, entries in external.items():
        REGISTRIES[kind].adopt(entries)
    _worker.update(data=_Data(shift, most=4), judging=judging, hardware=hardware)


def _run_in_worker(cell: Cell) -> CellResult:
    return run_cell(cell, _worker["data"], _worker["judging"], _worker["hardware"])


def _start_process(payload: bytes) -> None:
    """A worker ends with its parent, however that ends, and leaves the terminal to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process: no traceback from this one
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start_worker(payload)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_processes(cells: list[Cell], plan: Plan, workers: int, hardware: Hardware) -> Iterator[Finished]:
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_process,
        initargs=(_payload(plan, hardware),),
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
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        # RAY_ADDRESS, when set, names a running cluster; otherwise this machine is one
        local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
        if os.environ.get("RAY_ADDRESS"):
            local = {}
        ray.init(log_to_driver=False, **local)
    try:
        payload = ray.put(_payload(plan, hardware))

        @ray.remote(num_cpus=1, num_gpus=hardware.devices if hardware.accelerator in ("gpu", "cuda") else 0)
        def run(cell: Cell, payload: bytes) -> CellResult:
            if not _worker:  # Ray keeps processes for several tasks
                _start_worker(payload)
            return _run_in_worker(cell)

        futures = {run.remote(cell, payload): cell for cell in cells}
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
    """Rough time for the cells that are missing, from a few steps of one cell of each kind of learner."""
    finished, data = store.finished(), _Data(plan.shift)
    pending = [cell for cell in plan.cells if cell.key not in finished]
    workers = min(workers or os.cpu_count() or 1, max(1, len(pending)))
    total = 0.0
    for cells in _kinds(pending).values():
        learner, first = cells[0].learner, data.of(cells[0])
        if can_batch(learner, first) is None:
            a_step, fixed = _step_seconds(train_many, cells, data)
            total += a_step * learner.steps + fixed
        else:
            a_step, fixed = _step_seconds(_train_first, cells[:1], data)
            total += (a_step * learner.steps + fixed) * len(cells) / workers
    return total


def _kinds(cells: list[Cell]) -> dict[tuple[str, int], list[Cell]]:
    kinds: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault((cell.method, len(cell.unseen)), []).append(cell)
    return kinds


def _trials(cells: list[Cell], data: _Data, steps: int) -> list[Run]:
    short = {"steps": steps, "evaluations": 1, "patience": None}
    return [Run(cell.learner.replace(**short), data.of(cell), cell.seed) for cell in cells]


def _train_first(runs: list[Run]) -> TrainingResult:
    return train(runs[0].learner, runs[0].data, seed=runs[0].seed)


def _step_seconds(how: Callable[[list[Run]], Any], cells: list[Cell], data: _Data) -> tuple[float, float]:
    """Seconds a step and seconds besides, from runs of 2 and of 7 steps (after one that warms up)."""
    times = []
    for steps in (1, 2, 7):
        began = time.perf_counter()
        how(_trials(cells, data, steps))
        times.append(time.perf_counter() - began)
    a_step = max(times[2] - times[1], 0.0) / 5
    return a_step, max(times[1] - 2 * a_step, 0.0)
