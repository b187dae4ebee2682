"""A process of its own that measures what it is told: ``compare.speed.worker``, a JSON line in, one out.

glibc adapts to what a process allocates and frees, and cannot be set back. So whoever is timed as shipped, and
whoever's memory is measured, has a process for itself, and those processes take turns.
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

HERE = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """The process ended, took too long, or raised; the message says which, with its last line."""


class Worker:
    """One such process, seen from the one that started it. It starts at once; the first answer waits for it."""

    def __init__(self, *, threads: int, device: str, tuned: bool) -> None:
        from manualgrad.training import allocator

        environment = allocator.untouched_environment() | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compare.speed.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=HERE,  # where this package lies, so that no file of the caller's folder can be taken for it
            text=True,
            encoding="utf-8",
        )
        self.noise: list[str] = []
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()
        self._say("set_up", threads=threads, device=device, tuned=tuned)
        self.set_up: dict[str, Any] | None = None

    def ask(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        """What ``Bench.method`` returns there.

        Raises:
            WorkerError: as it says.
        """
        if self.set_up is None:
            self.set_up = self._answer("set_up", timeout)
        self._say(method, **arguments)
        return self._answer(method, timeout)

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):  # what was not yet sent to it needs no reader any more
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, method: str, **arguments: Any) -> None:
        try:
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._end(method)) from None

    def _answer(self, method: str, timeout: float | None) -> Any:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(timeout, give_up) if timeout is not None else None
        if timer:
            timer.start()
        line = self.process.stdout.readline()
        if timer:
            timer.cancel()
        if not line:
            raise WorkerError(f"took longer than {timeout:.0f} s" if late.is_set() else self._end(method))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def _end(self, method: str) -> str:
        code = self.process.wait()
        self.reader.join()
        last = next((line for line in reversed(self.noise) if line.strip()), "").strip()
        return f"the process ended with exit code {code} during {method}" + (f": {last}" if last else "")

    def _listen(self) -> None:
        for line in self.process.stderr:
            self.noise = [*self.noise[-99:], line]


class Bench:
    """What is asked for, inside the process."""

    def set_up(self, threads: int, device: str, tuned: bool) -> dict[str, Any]:
        from manualgrad.training import allocator

        tuning = allocator.tune() if tuned else allocator.Tuning(False, "as shipped")
        import torch

        from compare.speed.clock import clock_for

        torch.set_num_threads(threads)
        self.device, self.clock = device, clock_for(device)
        self.contenders: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self.operations: dict[str, Any] = {}
        return {"tuned": tuning.tuned, "what": tuning.what}

    def names(self) -> list[str]:
        """Those of a network that there are in one process."""
        from compare.speed import networks as speed_networks

        return speed_networks.contenders()

    def kernels(self) -> str:
        """Which of our kernels are in use, in words."""
        from manualgrad import kernels

        return str(kernels.available())

    def operation(self, name: str, side: str, layout: str, label: str, sizes: dict[str, Any]) -> list[str]:
        """Makes a contender of an operation, to be called ``label``; its phases."""
        from compare.speed import operations as speed_operations

        if name not in self.operations:
            self.operations = {name: speed_operations.operations(**sizes)[name]}
        self.contenders[label] = speed_operations.Contender(self.operations[name], side, layout, self.device)
        return list(self.contenders[label].phases)

    def network(self, name: str, channels: list[int], batch: int) -> list[str]:
        """Makes the contender ``name`` for a network; its phases."""
        from compare.speed import networks as speed_networks

        network = speed_networks.Network(tuple(channels), batch)
        self.contenders[name] = speed_networks.contender(name, network, self.device)
        return list(self.contenders[name].phases)

    def wrong(self, label: str) -> list[str]:
        return self.contenders[label].wrong()

    def calibrate(self, label: str, seconds: float) -> int:
        from compare.speed.clock import calls_for

        self.calls[label] = calls_for(self.contenders[label].step, seconds, self.clock)
        return self.calls[label]

    def bout(self, label: str) -> dict[str, Any]:
        """Mean seconds of each phase, and page faults of a step, those of the untimed one before included."""
        from compare.speed.clock import bout
        from manualgrad.training.allocator import page_faults

        before = page_faults()
        seconds = bout(self.contenders[label].step, self.calls[label], self.clock)
        faults = None if before is None else (page_faults() - before) / (self.calls[label] + 1)
        return {"seconds": seconds, "faults": faults}

    def saved(self, label: str) -> list[int] | None:
        from compare.speed.memory import saved_bytes

        asked = self.contenders[label].saved_of()
        if asked is None:
            return None
        saved = saved_bytes(*asked)
        return [saved.own, saved.given]

    def peak(self, label: str, steps: int) -> list[Any]:
        from compare.speed.memory import peak

        found = peak(lambda: self.contenders[label].step(lambda: None), steps, self.device)
        return [found.step, found.process, found.how]

    def clear(self) -> None:
        self.contenders.clear()
        self.calls.clear()
        self.operations.clear()


def main() -> None:
    """Answers until there is nothing more to read."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # whatever a library prints goes to stderr, and not between the answers
        bench = Bench()
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = {"result": getattr(bench, method)(**arguments)}
            except Exception as error:  # told to whoever asked, who raises it
                traceback.print_exc()
                summary = traceback.format_exception_only(error)[-1].strip().splitlines()
                answer = {"error": summary[0] if summary else type(error).__name__}
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
