"""What runs kernels: one function, which every thread of a team is given, or one thread alone.

It reads a block of 8-byte numbers, a program:

    who, how_many, barrier      addresses of omp_get_thread_num, omp_get_num_threads and GOMP_barrier, or 0 for a
                                thread alone
    stages                      how many follow, and of each:
        slots, steps, bytes     bytes from here to the next stage
        then of each step: kernel, bytes, and the kernel's arguments

A stage's work is cut into slots, and its steps are done one after the other for each slot, by one thread: what a step
leaves for the next lies in that thread's cache. The next stage begins when all slots are done.
"""

from __future__ import annotations

from manualgrad.cpu.ir.values import INT32, INT64, VOID, Value
from manualgrad.cpu.ir.vectors import Emitter

HEADER = ("who", "how_many", "barrier", "stages")


def program(emit: Emitter) -> None:
    """This thread's slots of every stage. OpenMP may grant fewer threads than were asked for: they are counted here,
    and thread t of n takes slots t, t + n, t + 2n, ..."""
    a = emit.named(HEADER)
    thread, threads = (emit.variable(emit.number(INT64, n)) for n in (0, 1))
    with emit.when(a.who > 0):
        for variable, asked in ((thread, a.who), (threads, a.how_many)):
            variable.set(emit.widened(emit.call(asked, INT32), INT64))
    at = emit.variable(emit.arguments + 8 * len(HEADER))
    with emit.loop(0, a.stages):
        slots, steps, size = _numbers(emit, at.get(), 3)
        first = at.get() + 8 * 3
        with emit.loop(thread.get(), slots, threads.get()) as slot:
            step = emit.variable(first)
            with emit.loop(0, steps):
                kernel, bytes_of_step = _numbers(emit, step.get(), 2)
                emit.call(kernel, VOID, step.get() + 8 * 2, slot)
                step.set(step.get() + bytes_of_step)
        at.set(at.get() + size)
        with emit.when(a.who > 0):
            emit.call(a.barrier, VOID)


def _numbers(emit: Emitter, address: Value, count: int) -> list[Value]:
    return [emit.load(address + 8 * n, INT64) for n in range(count)]
