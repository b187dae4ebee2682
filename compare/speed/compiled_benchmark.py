"""Benchmark of native under ``torch.compile``, beside native uncompiled in the same process."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from typing import Any

from compare.speed.contenders import COMPILED, NATIVE
from compare.speed.measurements import Results, Settings, measure_times
from compare.speed.network import Network
from compare.speed.results import Side, WrongResult, make_rows
from compare.speed.worker import Worker, WorkerError


def measure_compiled(settings: Settings, networks: Sequence[Network], time_limit: float, results: Results) -> None:
    """Measure native in its faster layout, compiled and not compiled; ``time_limit`` seconds are for all networks."""
    if settings.device == "cpu" and not find_compiler():
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
    worker: Worker, settings: Settings, network: Network, end: float, results: Results
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
    measurements = measure_times(dict.fromkeys(sides, worker), settings, end)
    fields = {"kind": "network", "subject": subject, "channels": network.channels, "batch": network.batch}
    rows = make_rows(fields | {"allocator": "tuned"}, sides, phases, measurements)
    results.rows += [row for row in rows if row.contender == compiled]
    call("clear")


def find_compiler() -> str | None:
    """Path of a C++ compiler, which ``torch.compile`` needs on the CPU, or None."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)
