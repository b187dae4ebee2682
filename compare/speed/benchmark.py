"""Benchmark of speed and memory: interleaved measurements of ours and native, for contenders whose results are right.

All measurements run in worker processes (``worker.py``). In the first, the allocator is tuned and all contenders run
together, checked before they are timed: each operation, then the whole training step. Then each contender has a
process of its own with the default allocator, where peak memory is measured too; their measurements are interleaved,
so a round meets the same load on the machine. Last comes native under ``torch.compile``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from compare.speed.compiled_benchmark import measure_compiled
from compare.speed.contenders import NATIVE, OURS, RECURSION
from compare.speed.measurements import OURS_TUNED, Results, Settings, is_right, measure_times, name_in_process
from compare.speed.memory import PeakMemory, SavedBytes
from compare.speed.network import Network
from compare.speed.operations import operations as operations_of
from compare.speed.results import MemoryRow, Side, SpeedComparison, make_rows
from compare.speed.worker import Worker

NETWORKS = tuple(Network((16, 32), batch) for batch in (32, 64, 128, 512)) + tuple(
    Network((32, 64), batch) for batch in (64, 512)
)
CURVE = (1, 4, 16, 256)
OPERATIONS_BATCH = 64
IN_OWN_PROCESS = (OURS, OURS_TUNED, RECURSION, *NATIVE.values())
PEAK_STEPS = 5


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
    results, load_before = Results(), _load_average()
    settings = Settings(device, threads, rounds, seconds_per_measurement, report)

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
        measure_compiled(settings, networks, compile_seconds, results)
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
    worker: Worker, settings: Settings, name: str, sizes: dict[str, Any], results: Results
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
            if side == "native" or is_right(worker, name, label, results):
                sides[label] = side
                saved = worker.call("measure_saved_bytes", label=label)
                results.memory.append(MemoryRow("operation", name, label, side, SavedBytes(*saved)))
    measurements = measure_times(dict.fromkeys(sides, worker), settings)
    fields = {"kind": "operation", "subject": name, "channels": tuple(sizes["channels"]), "batch": sizes["batch"]}
    results.rows += make_rows(fields | {"allocator": "tuned"}, sides, phases, measurements)
    worker.call("clear")


def _measure_network(
    workers: Mapping[str, Worker], settings: Settings, network: Network, allocator: str, results: Results
) -> None:
    """Measure the contenders that are not known to be wrong; check them first if the allocator is tuned."""
    subject, has_default_allocator = str(network), allocator == "default"
    phases: dict[str, list[str]] = {}
    sides: dict[str, Side] = {}
    for label, worker in workers.items():
        name = name_in_process(label)
        if results.is_wrong(subject, name):
            continue
        phases[label] = worker.call(
            "make_network_contender", name=name, channels=list(network.channels), batch=network.batch
        )
        side = "native" if label in NATIVE.values() else "ours"
        if has_default_allocator or side == "native" or is_right(worker, subject, label, results):
            sides[label] = side
    measurements = measure_times({label: workers[label] for label in sides}, settings)
    fields = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    results.rows += make_rows(fields | {"allocator": allocator}, sides, phases, measurements)
    for label, side in sides.items():
        if has_default_allocator:
            if label != OURS_TUNED:
                peak = workers[label].call("measure_peak_memory", label=name_in_process(label), steps=PEAK_STEPS)
                results.memory.append(MemoryRow("network", subject, label, side, peak=PeakMemory(*peak)))
        elif (saved := workers[label].call("measure_saved_bytes", label=label)) is not None:
            results.memory.append(MemoryRow("network", subject, label, side, SavedBytes(*saved)))
    for worker in dict.fromkeys(workers.values()):
        worker.call("clear")


def _measure_in_own_processes(settings: Settings, networks: Sequence[Network], results: Results) -> None:
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


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
