"""The largest number of multiplications and additions in a second, as a loop of nothing else reaches it."""

from __future__ import annotations

import torch

from manualgrad.cpu import jit, team
from manualgrad.cpu.ir.values import FLOAT
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.run_program import run_program
from manualgrad.cpu.signature import INT, POINTER, kernel
from scripts.taking_turns import Stopwatch


@kernel(out=POINTER, count=INT)
def multiply_add(emit: Emitter, a: Arguments) -> None:
    """Add products to as many sums as the registers hold, ``count`` times; each task stores the sums."""
    sums = [emit.variable(emit.constant(emit.float_vector, n)) for n in range(_num_sums(emit.lanes))]
    factor = emit.splat(emit.load(a.out, FLOAT))
    with emit.loop(0, a.count):
        for total in sums:
            total.set(emit.fma(factor, total.get(), factor))
    for n, total in enumerate(sums):
        emit.store(total.get(), a.out + (a.task * len(sums) + n) * emit.vector_bytes)


def _num_sums(lanes: int) -> int:
    return 24 if lanes == 16 else 12


def peak_flops(instructions: str, stopwatch: Stopwatch) -> float:
    """Measure the largest number of multiplications and additions in a second."""
    threads, seconds = stopwatch.threads, stopwatch.seconds
    module = jit.load_kernels(instructions, {k.name: k for k in (multiply_add, run_program)})
    numel, count = _num_sums(module.lanes) * module.lanes, 100_000
    times = []
    for _ in range(100):  # other threads may have to wake up, and other processes to end
        out = torch.full((threads * numel,), 0.5)
        start = seconds()
        team.run(module, "multiply_add", threads, out=out.data_ptr(), count=count)
        times.append(seconds() - start)
    return 2 * numel * count * threads / min(times)
