"""Times of the phases of a step: by wall clock on the CPU, by events on CUDA, where work is done later than asked."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Step = Callable[[Callable[[], None]], None]
"""One step of something: it calls ``mark()`` before its first phase, between phases, and after its last."""


class Clock(Protocol):
    def mark(self) -> Any:
        """A moment."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """The time between each moment and the next."""


class WallClock:
    """``time.perf_counter``: for devices that have done the work when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return [after - before for before, after in itertools.pairwise(marks)]


class CudaClock:
    """Events in the stream: the time that the device took, waiting for Python included."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]


def clock_for(device: str | torch.device) -> Clock:
    """The clock that tells when ``device`` has done the work."""
    return CudaClock() if torch.device(device).type == "cuda" else WallClock()


def bout(step: Step, calls: int, clock: Clock) -> list[float]:
    """The mean seconds of each phase over ``calls`` steps in a row, after one that is not timed.

    That first one brings back the caches and the threads, which others used in between.
    """
    step(lambda: None)
    marks: list[list[Any]] = []
    with no_garbage_collection():
        for _ in range(calls):
            marks.append([])
            step(lambda: marks[-1].append(clock.mark()))
    steps = [clock.seconds(of_step) for of_step in marks]
    return [sum(phase) / calls for phase in zip(*steps, strict=True)]


def calls_for(step: Step, seconds: float, clock: Clock, warm_up: int = 3) -> int:
    """How many steps in a row take about ``seconds``, at least 1; the ``warm_up`` before are not timed."""
    for _ in range(warm_up):
        step(lambda: None)
    return max(1, round(seconds / max(sum(bout(step, 1, clock)), 1e-9)))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's cyclic collector waits: it would run in the middle of whichever side comes to it.

    It is not asked to run before either: over all of PyTorch's objects that takes longer than many a turn.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
