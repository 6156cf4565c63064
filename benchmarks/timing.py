"""Fair timing in one process: rounds A B A B, best of them, no garbage collection, a fixed number of threads."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Work = Callable[[], Any]


@contextlib.contextmanager
def quiet(threads: int = 1) -> Iterator[None]:
    """Within: `threads` threads of PyTorch and no garbage collection; afterwards as it was."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def compare(
    works: Mapping[str, Work],
    *,
    rounds: int = 7,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Seconds of one call of each work, the best of `rounds`: what others do on the machine only adds.

    Every round visits all works, so that slow minutes of the machine hit all alike, and every other round
    backwards, so that none always comes after the same neighbour. A visit repeats the call for about `seconds`,
    after one that does not count: others have filled the processor's cache, which a loop of its own would not find.
    The default clock counts the CPU time of this process, which a busy machine disturbs least: it is the time
    that passes when one thread has a core of its own.
    """
    calls = {}
    with quiet():
        for name, work in works.items():
            work()  # allocations, caches, lazy imports
            calls[name] = max(1, round(seconds / max(_seconds(work, 1, clock), 1e-7)))
        best = dict.fromkeys(works, float("inf"))
        for index in range(rounds):
            for name in list(works)[:: -1 if index % 2 else 1]:
                if calls[name] > 1:
                    works[name]()
                best[name] = min(best[name], _seconds(works[name], calls[name], clock))
    return best


def _seconds(work: Work, calls: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(calls):
        work()
    return (clock() - began) / calls
