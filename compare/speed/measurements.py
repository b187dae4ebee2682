"""Parts that every benchmark of contenders in worker processes shares: settings, results, check and timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from compare.speed.contenders import OURS
from compare.speed.interleaving import interleave
from compare.speed.results import MemoryRow, TimingRow, WrongResult
from compare.speed.worker import Worker

OURS_TUNED = f"{OURS}, tuned allocator"


@dataclass
class Results:
    """Results that a benchmark has collected so far."""

    rows: list[TimingRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    wrong_results: list[WrongResult] = field(default_factory=list)
    not_measured: list[tuple[str, str]] = field(default_factory=list)
    compile_seconds: dict[str, float] = field(default_factory=dict)

    def is_wrong(self, subject: str, label: str) -> bool:
        """True if a result of the contender ``label`` on ``subject`` was wrong: it gets no time."""
        return any((wrong.subject, wrong.contender) == (subject, label) for wrong in self.wrong_results)


@dataclass(frozen=True)
class Settings:
    """Settings of all measurements: ``seconds`` for each of them; ``report`` is told what is measured next."""

    device: str
    threads: int
    rounds: int
    seconds: float
    report: Callable[[str], None]


def is_right(worker: Worker, subject: str, label: str, results: Results) -> bool:
    """Compare the contender ``label`` with native in float64; mismatches are added to ``results``."""
    mismatches = worker.call("find_mismatches", label=label)
    if mismatches:
        results.wrong_results.append(WrongResult(subject, label, tuple(mismatches)))
    return not mismatches


def measure_times(
    workers: Mapping[str, Worker], settings: Settings, end: float | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Calibrate each contender, then measure all of them interleaved."""

    def timeout() -> float | None:
        return None if end is None else max(0.1, end - time.monotonic())

    def measure(label: str) -> dict[str, Any]:
        return workers[label].call("measure_time", timeout(), label=name_in_process(label))

    for label, worker in workers.items():
        worker.call("calibrate", timeout(), label=name_in_process(label), seconds=settings.seconds)
    return interleave({label: partial(measure, label) for label in workers}, settings.rounds)


def name_in_process(label: str) -> str:
    """Name of a contender in its worker process."""
    return OURS if label == OURS_TUNED else label
