"""Measurements in a process of their own: ``python -m compare.speed.worker`` reads a JSON line and answers with one.

glibc adapts to what a process allocates and frees, and this cannot be reset. So each contender that is timed with the
default allocator, and each whose peak memory is measured, has its own process; measurements of these processes are
interleaved.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """The worker process ended, took too long, or raised an exception; the message says which, with its last line."""


class Worker:
    """Client of one worker process. The process starts at once; the first call waits until it is set up."""

    def __init__(self, *, threads: int, device: str, tuned: bool) -> None:
        from manualgrad.training import allocator

        environment = allocator.env_without_malloc_tuning() | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compare.speed.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=REPOSITORY,  # so that no file in the caller's folder is imported in place of this package
            text=True,
            encoding="utf-8",
        )
        self.stderr_lines: list[str] = []
        self.stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        self.stderr_reader.start()
        self._send("set_up", threads=threads, device=device, tuned=tuned)
        self.allocator: dict[str, Any] | None = None
        """Settings of the allocator, from the first call on: "tuned" and "description"."""

    def call(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        """Call ``WorkerMethods.method`` in the process and return its result.

        Raises:
            WorkerError: the process ended, took longer than ``timeout`` seconds, or the method raised an exception.
        """
        if self.allocator is None:
            self.allocator = self._receive("set_up", timeout)
        self._send(method, **arguments)
        return self._receive(method, timeout)

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stderr_reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):  # unsent input can be dropped
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, **arguments: Any) -> None:
        try:
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._exit_message(method)) from None

    def _receive(self, method: str, timeout: float | None) -> Any:
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            self.process.kill()

        timer = threading.Timer(timeout, kill) if timeout is not None else None
        if timer:
            timer.start()
        line = self.process.stdout.readline()
        if timer:
            timer.cancel()
        if not line:
            message = f"took longer than {timeout:.0f} s" if timed_out.is_set() else self._exit_message(method)
            raise WorkerError(message)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def _exit_message(self, method: str) -> str:
        code = self.process.wait()
        self.stderr_reader.join()
        last = next((line for line in reversed(self.stderr_lines) if line.strip()), "").strip()
        return f"the process ended with exit code {code} during {method}" + (f": {last}" if last else "")

    def _read_stderr(self) -> None:
        for line in self.process.stderr:
            self.stderr_lines = [*self.stderr_lines[-99:], line]


class WorkerMethods:
    """Methods that :meth:`Worker.call` calls inside the process."""

    def set_up(self, threads: int, device: str, tuned: bool) -> dict[str, Any]:
        """Tune the allocator or leave it as it is, set the number of threads; return the allocator's settings."""
        from manualgrad.training import allocator

        tuning = allocator.tune() if tuned else allocator.Tuning(False, "default settings")
        import torch

        from compare.speed.timer import timer_for

        torch.set_num_threads(threads)
        self.device, self.timer = device, timer_for(device)
        self.contenders: dict[str, Any] = {}
        self.num_steps: dict[str, int] = {}
        self.operations: dict[str, Any] = {}
        return {"tuned": tuning.tuned, "description": tuning.description}

    def contender_names(self) -> list[str]:
        """Names of the contenders for a network that run together in one process."""
        from compare.speed import contenders

        return contenders.contender_names()

    def kernels(self) -> str:
        """Describe which of our kernels are in use."""
        from manualgrad import kernels

        return str(kernels.available())

    def make_operation_contender(
        self, name: str, side: str, layout: str, label: str, sizes: dict[str, Any]
    ) -> list[str]:
        """Build a contender for an operation under the name ``label``; return its phases."""
        from compare.speed import operations as speed_operations

        if name not in self.operations:
            self.operations = {name: speed_operations.operations(**sizes)[name]}
        self.contenders[label] = speed_operations.Contender(self.operations[name], side, layout, self.device)
        return list(self.contenders[label].phases)

    def make_network_contender(self, name: str, channels: list[int], batch: int) -> list[str]:
        """Build the contender ``name`` for a network; return its phases."""
        from compare.speed import contenders
        from compare.speed.network import Network

        network = Network(tuple(channels), batch)
        self.contenders[name] = contenders.make_contender(name, network, self.device)
        return list(self.contenders[name].phases)

    def find_mismatches(self, label: str) -> list[str]:
        """Check the contender's results; return a sentence for each that is wrong."""
        return self.contenders[label].find_mismatches()

    def calibrate(self, label: str, seconds: float) -> int:
        """Set how many steps one measurement takes, so that it lasts about ``seconds``; return that number."""
        from compare.speed.timer import num_steps_for

        self.num_steps[label] = num_steps_for(self.contenders[label].step, seconds, self.timer)
        return self.num_steps[label]

    def measure_time(self, label: str) -> dict[str, Any]:
        """Measure mean seconds of each phase, and page faults of a step, the untimed warm-up step included."""
        from compare.speed.timer import time_phases
        from manualgrad.training.allocator import page_faults

        before = page_faults()
        seconds = time_phases(self.contenders[label].step, self.num_steps[label], self.timer)
        faults = None if before is None else (page_faults() - before) / (self.num_steps[label] + 1)
        return {"seconds": seconds, "page_faults": faults}

    def measure_saved_bytes(self, label: str) -> list[int] | None:
        """Measure the bytes saved for backward, own and given; None if autograd saves nothing."""
        from compare.speed.memory import saved_bytes

        forward = self.contenders[label].forward_and_held_tensors()
        if forward is None:
            return None
        saved = saved_bytes(*forward)
        return [saved.own, saved.given]

    def measure_peak_memory(self, label: str, steps: int) -> list[Any]:
        """Measure the peak memory of ``steps`` steps; return the fields of PeakMemory."""
        from compare.speed.memory import peak_memory

        peak = peak_memory(lambda: self.contenders[label].step(lambda: None), steps, self.device)
        return [peak.step_bytes, peak.process_bytes, peak.how]

    def clear(self) -> None:
        """Delete all contenders."""
        self.contenders.clear()
        self.num_steps.clear()
        self.operations.clear()


def main() -> None:
    """Answer calls until standard input ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what libraries print goes to stderr, not between the answers
        methods = WorkerMethods()
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = {"result": getattr(methods, method)(**arguments)}
            except Exception as error:  # sent to the caller, which raises it as WorkerError
                traceback.print_exc()
                summary = traceback.format_exception_only(error)[-1].strip().splitlines()
                answer = {"error": summary[0] if summary else type(error).__name__}
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
