"""Timers of the phases of a step: wall clock on the CPU, CUDA events on CUDA, where work runs asynchronously."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

TimedStep = Callable[[Callable[[], None]], None]
"""Step to be timed: it calls ``mark()`` before its first phase, between phases, and after its last phase."""


class Timer(Protocol):
    """Clock that is read between the phases of a step."""

    def mark(self) -> Any:
        """Record the present time."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Time between each mark and the next."""


class WallTimer:
    """``time.perf_counter``: for devices that have finished the work when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return [after - before for before, after in itertools.pairwise(marks)]


class CudaEventTimer:
    """CUDA events in the stream: the time on the device, waiting for Python included."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]


def timer_for(device: str | torch.device) -> Timer:
    """Return the timer that measures when ``device`` has finished the work."""
    return CudaEventTimer() if torch.device(device).type == "cuda" else WallTimer()


def time_phases(step: TimedStep, num_steps: int, timer: Timer) -> list[float]:
    """Mean seconds of each phase over ``num_steps`` consecutive steps, after one warm-up step.

    The warm-up brings back caches and threads that other contenders have used in between.
    """
    step(lambda: None)
    marks: list[list[Any]] = []
    with no_garbage_collection():
        for _ in range(num_steps):
            marks.append([])
            step(lambda: marks[-1].append(timer.mark()))
    steps = [timer.seconds(marks_of_step) for marks_of_step in marks]
    return [sum(phase) / num_steps for phase in zip(*steps, strict=True)]


def num_steps_for(step: TimedStep, seconds: float, timer: Timer, warm_up: int = 3) -> int:
    """Number of steps that take about ``seconds``, at least 1; measured after ``warm_up`` steps."""
    for _ in range(warm_up):
        step(lambda: None)
    return max(1, round(seconds / max(sum(time_phases(step, 1, timer)), 1e-9)))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable Python's cyclic garbage collector, which would otherwise run during an arbitrary contender's step.

    No collection is forced beforehand: with all of PyTorch's objects it takes longer than many measurements.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
