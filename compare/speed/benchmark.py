"""Benchmark of speed and memory: interleaved measurements of ours and native, for contenders whose results are right.

All measurements run in worker processes (``worker.py``). In the first, the allocator is tuned and all contenders run
together, checked before they are timed: each operation, then the whole training step. Then each contender has a
process of its own with the default allocator, where peak memory is measured too; their measurements are interleaved,
so a round meets the same load on the machine. Last comes native under ``torch.compile``.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from compare.speed.contenders import COMPILED, NATIVE, OURS, RECURSION, Network
from compare.speed.interleaving import interleave
from compare.speed.memory import PeakMemory, SavedBytes
from compare.speed.operations import operations as operations_of
from compare.speed.results import MemoryRow, Side, SpeedComparison, TimingRow, WrongResult, make_rows
from compare.speed.worker import Worker, WorkerError

NETWORKS = tuple(Network((16, 32), batch) for batch in (32, 64, 128, 512)) + tuple(
    Network((32, 64), batch) for batch in (64, 512)
)
CURVE = (1, 4, 16, 256)
OPERATIONS_BATCH = 64
OURS_TUNED = f"{OURS}, tuned allocator"
IN_OWN_PROCESS = (OURS, OURS_TUNED, RECURSION, *NATIVE.values())
PEAK_STEPS = 5


@dataclass
class _Results:
    """Results that :func:`compare_speed` has collected so far."""

    rows: list[TimingRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    wrong_results: list[WrongResult] = field(default_factory=list)
    not_measured: list[tuple[str, str]] = field(default_factory=list)
    compile_seconds: dict[str, float] = field(default_factory=dict)

    def is_wrong(self, subject: str, label: str) -> bool:
        return any((wrong.subject, wrong.contender) == (subject, label) for wrong in self.wrong_results)


def compare_speed(
    *,
    device: str = "cpu",
    threads: int | None = None,
    networks: Sequence[Network] = NETWORKS,
    curve: Sequence[int] = CURVE,
    operations: bool = True,
    rounds: int = 11,
    seconds_per_measurement: float = 0.03,
    compiled: bool = True,
    compile_seconds: float = 40.0,
    shipped: bool = True,
    progress: Any = None,
) -> SpeedComparison:
    """Measure everything. The defaults take about two and a half minutes on 2 cores.

    Args:
        device: "cpu" or "cuda".
        threads: number of threads of PyTorch in every process; None means as many as in this process.
        networks: networks for the tables: with the allocator tuned, with the default allocator, and compiled.
        curve: further batch sizes for the first network's channels, with the allocator tuned only.
        operations: also measure each operation, at the sizes of the first network's channels and batch 64.
        rounds: number of measurements of each contender.
        seconds_per_measurement: approximate duration of a measurement, which has at least one step.
        compiled: also measure native under ``torch.compile``.
        compile_seconds: time limit for compiling and measuring that; what does not fit is reported as not measured.
        shipped: also measure with the default allocator, and measure peak memory.
        progress: tqdm bar, or an object with ``total``, ``update`` and ``set_description_str``.

    Raises:
        ValueError: there are no rounds, no time, or no networks.
        WorkerError: a process ended unexpectedly.
    """
    if rounds < 1 or seconds_per_measurement <= 0 or not networks:
        raise ValueError(
            f"compare_speed needs at least one round, seconds_per_measurement above 0 and at least one network; got "
            f"rounds={rounds}, seconds_per_measurement={seconds_per_measurement}, {len(networks)} networks"
        )
    threads = threads or torch.get_num_threads()
    first = networks[0]
    curve_networks = [Network(first.channels, batch) for batch in curve]
    all_networks = sorted({*networks, *curve_networks}, key=lambda n: (n.channels, n.batch))
    sizes = {"batch": OPERATIONS_BATCH, "channels": list(first.channels)}
    names = list(operations_of(**sizes)) if operations else []
    report = _ProgressReport(progress, len(names) + len(all_networks) + (shipped + compiled) * len(networks))
    results, load_before = _Results(), _load_average()
    settings = _Settings(device, threads, rounds, seconds_per_measurement, report)

    with Worker(threads=threads, device=device, tuned=True) as worker:
        kernels = worker.call("kernels")
        for name in names:
            report(name)
            _measure_operation(worker, settings, name, sizes, results)
        for network in all_networks:
            report(f"network {network}")
            labels = worker.call("contender_names")
            _measure_network(dict.fromkeys(labels, worker), settings, network, "tuned", results)
        allocator = worker.allocator
    if shipped:
        _measure_in_own_processes(settings, networks, results)
    if compiled:
        _measure_compiled(settings, networks, compile_seconds, results)
    report.finish()
    return SpeedComparison(
        device=device,
        threads=threads,
        rounds=rounds,
        seconds_per_measurement=seconds_per_measurement,
        load_averages=None if load_before is None else (load_before, _load_average()),
        allocator_settings=allocator["description"],
        is_tuned=allocator["tuned"],
        kernels=kernels,
        rows=tuple(results.rows),
        memory=tuple(results.memory),
        wrong_results=tuple(results.wrong_results),
        not_measured=tuple(results.not_measured),
        compile_seconds=results.compile_seconds,
    )


@dataclass(frozen=True)
class _Settings:
    device: str
    threads: int
    rounds: int
    seconds: float
    report: Callable[[str], None]


class _ProgressReport:
    """Shows on a progress bar what is being measured; each call also counts the previous item as finished."""

    def __init__(self, progress: Any, total: int) -> None:
        self.progress, self.is_started = progress, False
        if progress is not None:
            progress.total = total

    def __call__(self, description: str) -> None:
        self.finish()
        self.is_started = True
        if self.progress is not None:
            self.progress.set_description_str(description)

    def finish(self) -> None:
        if self.is_started and self.progress is not None:
            self.progress.update(1)
        self.is_started = False


def _measure_operation(
    worker: Worker, settings: _Settings, name: str, sizes: dict[str, Any], results: _Results
) -> None:
    """Check both sides in both memory layouts, then measure those that are right."""
    operation = operations_of(**sizes)[name]
    sides: dict[str, Side] = {}
    phases: dict[str, list[str]] = {}
    for layout in operation.layouts:
        for side, side_name in (("ours", OURS), ("native", "PyTorch")):
            label = f"{side_name}, {layout}" if len(operation.layouts) > 1 else side_name
            phases[label] = worker.call(
                "make_operation_contender", name=name, side=side, layout=layout, label=label, sizes=sizes
            )
            if side == "native" or _is_right(worker, name, label, results):
                sides[label] = side
                saved = worker.call("measure_saved_bytes", label=label)
                results.memory.append(MemoryRow("operation", name, label, side, SavedBytes(*saved)))
    measurements = _measure_times(dict.fromkeys(sides, worker), settings)
    fields = {"kind": "operation", "subject": name, "channels": tuple(sizes["channels"]), "batch": sizes["batch"]}
    results.rows += make_rows(fields | {"allocator": "tuned"}, sides, phases, measurements)
    worker.call("clear")


def _measure_network(
    workers: Mapping[str, Worker], settings: _Settings, network: Network, allocator: str, results: _Results
) -> None:
    """Measure the contenders that are not known to be wrong; check them first if the allocator is tuned."""
    subject, has_default_allocator = str(network), allocator == "default"
    phases: dict[str, list[str]] = {}
    sides: dict[str, Side] = {}
    for label, worker in workers.items():
        name = _name_in_process(label)
        if results.is_wrong(subject, name):
            continue
        phases[label] = worker.call(
            "make_network_contender", name=name, channels=list(network.channels), batch=network.batch
        )
        side = "native" if label in NATIVE.values() else "ours"
        if has_default_allocator or side == "native" or _is_right(worker, subject, label, results):
            sides[label] = side
    measurements = _measure_times({label: workers[label] for label in sides}, settings)
    fields = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    results.rows += make_rows(fields | {"allocator": allocator}, sides, phases, measurements)
    for label, side in sides.items():
        if has_default_allocator:
            if label != OURS_TUNED:
                peak = workers[label].call("measure_peak_memory", label=_name_in_process(label), steps=PEAK_STEPS)
                results.memory.append(MemoryRow("network", subject, label, side, peak=PeakMemory(*peak)))
        elif (saved := workers[label].call("measure_saved_bytes", label=label)) is not None:
            results.memory.append(MemoryRow("network", subject, label, side, SavedBytes(*saved)))
    for worker in dict.fromkeys(workers.values()):
        worker.call("clear")


def _measure_in_own_processes(settings: _Settings, networks: Sequence[Network], results: _Results) -> None:
    """Measure with the default allocator: each contender and network has a new process, since glibc's behaviour
    depends on everything that a process freed before."""
    for network in networks:
        settings.report(f"default allocator: network {network}")
        with ExitStack() as stack:
            workers = {
                label: stack.enter_context(
                    Worker(threads=settings.threads, device=settings.device, tuned=label == OURS_TUNED)
                )
                for label in IN_OWN_PROCESS
            }
            _measure_network(workers, settings, network, "default", results)


def _measure_compiled(settings: _Settings, networks: Sequence[Network], time_limit: float, results: _Results) -> None:
    """Measure native in its faster layout, compiled and not compiled; ``time_limit`` seconds are for all networks."""
    if settings.device == "cpu" and not _compiler():
        results.not_measured.append(
            ("torch.compile", "it needs a C++ compiler, and none was found (CXX, g++, clang++, c++)")
        )
        return
    end = time.monotonic() + time_limit
    with Worker(threads=settings.threads, device=settings.device, tuned=True) as worker:
        for network in networks:
            settings.report(f"torch.compile: network {network}")
            remaining = end - time.monotonic()
            try:
                if remaining > 0:
                    _measure_compiled_network(worker, settings, network, end, results)
                    continue
                reason = f"the {time_limit:.0f} s for compiling and measuring were used up before"
            except WorkerError as error:
                timed_out = f"not finished in the {remaining:.0f} s that were left of {time_limit:.0f} s"
                reason = timed_out if time.monotonic() >= end else str(error)
            results.not_measured.append((f"torch.compile, network {network}", reason))


def _measure_compiled_network(
    worker: Worker, settings: _Settings, network: Network, end: float, results: _Results
) -> None:
    subject = str(network)
    native = next((row.baseline for row in results.rows if row.subject == subject and row.allocator == "tuned"), None)
    if native is None:
        return
    layout = next(layout for layout, name in NATIVE.items() if name == native)
    compiled = COMPILED[layout]
    sides: dict[str, Side] = {native: "native", compiled: "native"}

    def call(method: str, **arguments: Any) -> Any:
        return worker.call(method, timeout=max(0.1, end - time.monotonic()), **arguments)

    phases = {
        label: call("make_network_contender", name=label, channels=list(network.channels), batch=network.batch)
        for label in sides
    }
    start = time.monotonic()
    mismatches = call("find_mismatches", label=compiled)  # two steps, of which the first compiles
    results.compile_seconds[subject] = time.monotonic() - start
    if mismatches:
        results.wrong_results.append(WrongResult(subject, compiled, tuple(mismatches)))
        return
    measurements = _measure_times(dict.fromkeys(sides, worker), settings, end)
    fields = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    rows = make_rows(fields | {"allocator": "tuned"}, sides, phases, measurements)
    results.rows += [row for row in rows if row.contender == compiled]
    call("clear")


def _is_right(worker: Worker, subject: str, label: str, results: _Results) -> bool:
    mismatches = worker.call("find_mismatches", label=label)
    if mismatches:
        results.wrong_results.append(WrongResult(subject, label, tuple(mismatches)))
    return not mismatches


def _measure_times(
    workers: Mapping[str, Worker], settings: _Settings, end: float | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Calibrate each contender, then measure all of them interleaved."""

    def timeout() -> float | None:
        return None if end is None else max(0.1, end - time.monotonic())

    def measure(label: str) -> dict[str, Any]:
        return workers[label].call("measure_time", timeout(), label=_name_in_process(label))

    for label, worker in workers.items():
        worker.call("calibrate", timeout(), label=_name_in_process(label), seconds=settings.seconds)
    return interleave({label: partial(measure, label) for label in workers}, settings.rounds)


def _name_in_process(label: str) -> str:
    """Name of a contender in its worker process."""
    return OURS if label == OURS_TUNED else label


def _compiler() -> str | None:
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
