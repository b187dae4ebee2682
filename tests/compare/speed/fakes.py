"""A timer and a worker without time and processes, and a renderer that keeps no picture."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.style
import torch

from compare.sections import Picture
from compare.speed import timer
from compare.speed import worker as speed_worker
from compare.speed.contenders import NATIVE
from compare.speed.network import Network

SMALL = Network((2, 3), 2)
CONTIGUOUS, CHANNELS_LAST = NATIVE.values()


class FakeTimer:
    """Timer whose time advances only when a step advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def seconds(self, marks: list[float]) -> list[float]:
        return timer.WallTimer().seconds(marks)


class InProcessWorker(speed_worker.Worker):
    """Worker without a process: methods run in this process, and calls are recorded."""

    calls: list[tuple[str, Any]]

    def __init__(self, *, threads: int, device: str, tuned: bool) -> None:
        self.methods = speed_worker.WorkerMethods()
        self.allocator = self.methods.set_up(torch.get_num_threads(), device, tuned)

    def call(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        self.calls.append((method, arguments.get("label")))
        result = getattr(self.methods, method)(**arguments)
        return json.loads(json.dumps(result))  # as it arrives through the pipe

    def close(self) -> None:
        pass


def draw(parts: Any) -> None:
    """Draw the pictures among ``parts`` in a light and in a dark style."""
    for style in ("default", "dark_background"):
        with matplotlib.style.context(style):
            for part in parts:
                if isinstance(part, Picture):
                    assert part.alt
                    part.draw().canvas.draw()
