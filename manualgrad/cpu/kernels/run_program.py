"""The interpreter of programs: a function that each thread of an OpenMP team runs, or one thread alone.

It reads a block of 8-byte integers, a program:

    omp_get_thread_num, omp_get_num_threads, barrier
                                            addresses of OpenMP's functions (the last is GOMP_barrier), or 0, 0, 0 for
                                            one thread alone
    num_regions                             followed by each parallel region:
        num_tasks, num_calls, region_bytes  ``region_bytes`` is the distance from here to the next region
        then for each kernel call: kernel, call_bytes, the kernel's arguments

A thread runs all calls of a region for one task before its next task, so that data passed from one call to the next
stays in the thread's cache. The next region begins when all tasks are done.
"""

from __future__ import annotations

from manualgrad.cpu.ir.values import INT32, INT64, VOID, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, kernel

HEADER_WORDS = 4  # integers before the first region: the kernel's arguments


@kernel(omp_get_thread_num=INT, omp_get_num_threads=INT, barrier=INT, num_regions=INT)
def run_program(emit: Emitter, a: Arguments) -> None:
    """Run this thread's tasks of every region: thread t of n runs tasks t, t + n, t + 2n, ...

    n is OpenMP's number of threads, which can be less than the number that the caller requested."""
    thread_num, num_threads = (emit.variable(emit.constant(INT64, n)) for n in (0, 1))
    with emit.if_then(a.omp_get_thread_num > 0):
        for variable, function in ((thread_num, a.omp_get_thread_num), (num_threads, a.omp_get_num_threads)):
            variable.set(emit.zext(emit.call(function, INT32), INT64))
    region = emit.variable(emit.arguments + 8 * HEADER_WORDS)
    with emit.loop(0, a.num_regions):
        num_tasks, num_calls, region_bytes = _load_integers(emit, region.get(), 3)
        first_call = region.get() + 8 * 3
        with emit.loop(thread_num.get(), num_tasks, num_threads.get()) as task:
            call = emit.variable(first_call)
            with emit.loop(0, num_calls):
                kernel, call_bytes = _load_integers(emit, call.get(), 2)
                emit.call(kernel, VOID, call.get() + 8 * 2, task)
                call.set(call.get() + call_bytes)
        region.set(region.get() + region_bytes)
        with emit.if_then(a.omp_get_thread_num > 0):
            emit.call(a.barrier, VOID)


def _load_integers(emit: Emitter, address: Value, count: int) -> list[Value]:
    return [emit.load(address + 8 * n, INT64) for n in range(count)]
