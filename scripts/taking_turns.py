"""Timing of contenders that take turns, and the argument THREADS of the commands that do so."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from manualgrad.command_line import ArgumentParser
from manualgrad.training import allocator

Name = TypeVar("Name")


@dataclass(frozen=True)
class Stopwatch:
    """Clock for steps in ``threads`` threads.

    Attributes:
        threads: number of threads that torch uses.
        seconds: the processor's time of this process for one thread, which other load changes less; else the time.
        names: contenders that the command line chooses.
    """

    threads: int
    seconds: Callable[[], float]
    names: Sequence[str] = ()

    def times(self, steps: Mapping[Name, Callable[[], None]], rounds: int, warmup: int) -> dict[Name, list[float]]:
        """Call all steps in turn, and return the seconds of each in ``rounds`` rounds after those of the warm-up."""
        result: dict[Name, list[float]] = {name: [] for name in steps}
        for n in range(warmup + rounds):
            for name, step in steps.items():
                start = self.seconds()
                step()
                if n >= warmup:
                    result[name].append(self.seconds() - start)
        return result


def stopwatch_from_arguments(prog: str, description: str | None, names: Sequence[str] = ()) -> Stopwatch:
    """Read THREADS from the command line, 1 by default; set torch's threads, and tune the allocator.

    With ``names``, some of them may follow THREADS; all are chosen by default."""
    parser = ArgumentParser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", metavar="THREADS", type=int, nargs="?", default=1, help="default: %(default)s")
    if names:
        text = f"those to measure, all by default: {', '.join(names)}"
        parser.add_argument("names", metavar="NAME", nargs="*", help=text)
    options = parser.parse_args()
    threads, chosen = options.threads, getattr(options, "names", [])
    if threads < 1:
        parser.error(f"argument THREADS: expected a whole number, at least 1, got {threads}")
    if unknown := set(chosen) - set(names):
        parser.error(f"argument NAME: unknown {', '.join(sorted(unknown))}, expected some of {', '.join(names)}")
    torch.set_num_threads(threads)
    allocator.tune()
    return Stopwatch(threads, time.process_time if threads == 1 else time.perf_counter, chosen or names)
