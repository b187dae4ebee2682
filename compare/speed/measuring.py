"""Speed and memory, side by side: ours and native in turn, medians of ratios, and only of what is right.

Measured in processes that are started for it (``worker``). In the first the allocator is tuned and all are
together, checked before they are timed: each operation, then the whole step of training. Then each contender has a
process of its own, as shipped, which also tells its peak memory; these take turns, so that a round meets the same
machine. Last, native under ``torch.compile``.
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

from compare.speed.memory import Peak, Saved
from compare.speed.networks import COMPILED, DOCUMENT, NATIVE, OURS, Network
from compare.speed.operations import operations as operations_of
from compare.speed.rows import MemoryRow, Row, Side, SpeedComparison, Wrong, rows_of
from compare.speed.turns import take_turns
from compare.speed.worker import Worker, WorkerError

NETWORKS = tuple(Network((16, 32), batch) for batch in (32, 64, 128, 512)) + tuple(
    Network((32, 64), batch) for batch in (64, 512)
)
CURVE = (1, 4, 16, 256)
OPERATIONS_BATCH = 64
TUNED_PROCESS = f"{OURS}, tuned allocator"
SHIPPED = (OURS, TUNED_PROCESS, DOCUMENT, *NATIVE.values())
PEAK_STEPS = 5


@dataclass
class _Collected:
    """What :func:`compare_speed` fills on its way."""

    rows: list[Row] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    compiling: dict[str, float] = field(default_factory=dict)

    def right(self, subject: str, label: str) -> bool:
        return not any((one.subject, one.contender) == (subject, label) for one in self.wrong)


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
    """Measures all of it. The defaults take about two and a half minutes on 2 cores.

    Args:
        device: "cpu" or "cuda".
        threads: of torch, in every process; None: as many as here.
        networks: sizes for the tables, with the allocator tuned and as shipped, and compiled.
        curve: further batch sizes for the first network's channels, with the allocator tuned alone.
        operations: also each operation, at the sizes of the first network's channels and batch 64.
        rounds: how many turns each contender has.
        seconds_per_measurement: about how long a turn takes; at least one step.
        compiled: also native under ``torch.compile``.
        compile_seconds: for compiling and measuring that; what does not fit is named as missing.
        shipped: also with the allocator as shipped, and the peak memory.
        progress: like tqdm: ``total``, ``update`` and ``set_description_str``.

    Raises:
        ValueError: no rounds, no time, or no networks.
        WorkerError: a process ended of itself.
    """
    if rounds < 1 or seconds_per_measurement <= 0 or not networks:
        raise ValueError(
            f"compare_speed needs at least one round, some seconds and a network; got rounds={rounds}, "
            f"seconds_per_measurement={seconds_per_measurement}, {len(networks)} networks"
        )
    threads = threads or torch.get_num_threads()
    first = networks[0]
    points = [Network(first.channels, batch) for batch in curve]
    sizes = sorted({*networks, *points}, key=lambda n: (n.channels, n.batch))
    made_of = {"batch": OPERATIONS_BATCH, "channels": list(first.channels)}
    names = list(operations_of(**made_of)) if operations else []
    tell = _Telling(progress, len(names) + len(sizes) + (shipped + compiled) * len(networks))
    found, load = _Collected(), _load()
    plan = _Plan(device, threads, rounds, seconds_per_measurement, tell)

    with Worker(threads=threads, device=device, tuned=True) as worker:
        kernels = worker.ask("kernels")
        for name in names:
            tell(name)
            _operation(worker, plan, name, made_of, found)
        for network in sizes:
            tell(f"network {network}")
            labels = worker.ask("names")
            _network(dict.fromkeys(labels, worker), plan, network, "tuned", found)
        tuning = worker.set_up
    if shipped:
        _shipped(plan, networks, found)
    if compiled:
        _compiled(plan, networks, compile_seconds, found)
    tell.finish()
    return SpeedComparison(
        device=device,
        threads=threads,
        rounds=rounds,
        seconds_per_measurement=seconds_per_measurement,
        load=None if load is None else (load, _load()),
        allocator=tuning["what"],
        tuned=tuning["tuned"],
        kernels=kernels,
        rows=tuple(found.rows),
        memory=tuple(found.memory),
        wrong=tuple(found.wrong),
        missing=tuple(found.missing),
        compiling=found.compiling,
    )


@dataclass(frozen=True)
class _Plan:
    device: str
    threads: int
    rounds: int
    seconds: float
    tell: Callable[[str], None]


class _Telling:
    """Each call says what is being done, and that what was done before is done."""

    def __init__(self, progress: Any, total: int) -> None:
        self.progress, self.started = progress, False
        if progress is not None:
            progress.total = total

    def __call__(self, what: str) -> None:
        self.finish()
        self.started = True
        if self.progress is not None:
            self.progress.set_description_str(what)

    def finish(self) -> None:
        if self.started and self.progress is not None:
            self.progress.update(1)
        self.started = False


def _operation(worker: Worker, plan: _Plan, name: str, sizes: dict[str, Any], found: _Collected) -> None:
    """Both sides in both layouts: checked, then timed in turn."""
    operation = operations_of(**sizes)[name]
    sides: dict[str, Side] = {}
    phases: dict[str, list[str]] = {}
    for layout in operation.layouts:
        for side, who in (("ours", OURS), ("native", "PyTorch")):
            label = f"{who}, {layout}" if len(operation.layouts) > 1 else who
            phases[label] = worker.ask("operation", name=name, side=side, layout=layout, label=label, sizes=sizes)
            if side == "native" or _checked(worker, name, label, found):
                sides[label] = side
                saved = worker.ask("saved", label=label)
                found.memory.append(MemoryRow("operation", name, label, side, Saved(*saved)))
    results = _in_turn(dict.fromkeys(sides, worker), plan)
    about = {"kind": "operation", "subject": name, "channels": tuple(sizes["channels"]), "batch": sizes["batch"]}
    found.rows += rows_of(about | {"allocator": "tuned"}, sides, phases, results)
    worker.ask("clear")


def _network(workers: Mapping[str, Worker], plan: _Plan, network: Network, allocator: str, found: _Collected) -> None:
    """Those of ``workers`` who were not found wrong, in turn; where the allocator is tuned, checked before."""
    subject, shipped = str(network), allocator == "as shipped"
    phases: dict[str, list[str]] = {}
    sides: dict[str, Side] = {}
    for label, worker in workers.items():
        name = OURS if label == TUNED_PROCESS else label
        if not found.right(subject, name):
            continue
        phases[label] = worker.ask("network", name=name, channels=list(network.channels), batch=network.batch)
        side = "native" if label in NATIVE.values() else "ours"
        if shipped or side == "native" or _checked(worker, subject, label, found):
            sides[label] = side
    results = _in_turn({label: workers[label] for label in sides}, plan)
    about = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    found.rows += rows_of(about | {"allocator": allocator}, sides, phases, results)
    for label, side in sides.items():
        if shipped:
            if label != TUNED_PROCESS:
                peak = Peak(*workers[label].ask("peak", label=_name(label), steps=PEAK_STEPS))
                found.memory.append(MemoryRow("network", subject, label, side, peak=peak))
        elif (saved := workers[label].ask("saved", label=label)) is not None:
            found.memory.append(MemoryRow("network", subject, label, side, Saved(*saved)))
    for worker in dict.fromkeys(workers.values()):
        worker.ask("clear")


def _shipped(plan: _Plan, networks: Sequence[Network], found: _Collected) -> None:
    """A new process for each contender at each size: what glibc does depends on all that a process freed before."""
    for network in networks:
        plan.tell(f"as shipped: network {network}")
        with ExitStack() as stack:
            workers = {
                label: stack.enter_context(
                    Worker(threads=plan.threads, device=plan.device, tuned=label == TUNED_PROCESS)
                )
                for label in SHIPPED
            }
            _network(workers, plan, network, "as shipped", found)


def _compiled(plan: _Plan, networks: Sequence[Network], seconds: float, found: _Collected) -> None:
    """Native in its better layout, compiled and not, in turn; within ``seconds`` for all networks."""
    if plan.device == "cpu" and not _compiler():
        found.missing.append(("torch.compile", "it needs a C++ compiler, and none is found (CXX, g++, clang++)"))
        return
    end = time.monotonic() + seconds
    with Worker(threads=plan.threads, device=plan.device, tuned=True) as worker:
        for network in networks:
            plan.tell(f"torch.compile: network {network}")
            left = end - time.monotonic()
            try:
                if left > 0:
                    _compiled_network(worker, plan, network, end, found)
                    continue
                reason = f"the {seconds:.0f} s for compiling and measuring were used up before"
            except WorkerError as error:
                late = f"not done in the {left:.0f} s that were left of {seconds:.0f}"
                reason = late if time.monotonic() >= end else str(error)
            found.missing.append((f"torch.compile, network {network}", reason))


def _compiled_network(worker: Worker, plan: _Plan, network: Network, end: float, found: _Collected) -> None:
    subject = str(network)
    native = next((row.against for row in found.rows if row.subject == subject and row.allocator == "tuned"), None)
    if native is None:
        return
    layout = next(layout for layout, name in NATIVE.items() if name == native)
    compiled = COMPILED[layout]
    sides: dict[str, Side] = {native: "native", compiled: "native"}

    def ask(method: str, **arguments: Any) -> Any:
        return worker.ask(method, timeout=max(0.1, end - time.monotonic()), **arguments)

    phases = {
        label: ask("network", name=label, channels=list(network.channels), batch=network.batch) for label in sides
    }
    began = time.monotonic()
    sentences = ask("wrong", label=compiled)  # two steps, of which the first compiles
    found.compiling[subject] = time.monotonic() - began
    if sentences:
        found.wrong.append(Wrong(subject, compiled, tuple(sentences)))
        return
    results = _in_turn(dict.fromkeys(sides, worker), plan, end)
    about = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    rows = rows_of(about | {"allocator": "tuned"}, sides, phases, results)
    found.rows += [row for row in rows if row.contender == compiled]
    ask("clear")


def _checked(worker: Worker, subject: str, label: str, found: _Collected) -> bool:
    sentences = worker.ask("wrong", label=label)
    if sentences:
        found.wrong.append(Wrong(subject, label, tuple(sentences)))
    return not sentences


def _in_turn(workers: Mapping[str, Worker], plan: _Plan, end: float | None = None) -> dict[str, list[dict[str, Any]]]:
    def left() -> float | None:
        return None if end is None else max(0.1, end - time.monotonic())

    def turn(label: str) -> dict[str, Any]:
        return workers[label].ask("bout", left(), label=_name(label))

    for label, worker in workers.items():
        worker.ask("calibrate", left(), label=_name(label), seconds=plan.seconds)
    return take_turns({label: partial(turn, label) for label in workers}, plan.rounds)


def _name(label: str) -> str:
    """What a contender is called in its process."""
    return OURS if label == TUNED_PROCESS else label


def _compiler() -> str | None:
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for one in candidates if one and (path := shutil.which(one))), None)


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
