"""Kernels in PyTorch's own OpenMP threads.

PyTorch's threads spin while they wait for work. Threads of another pool would compete with them for the cores, so a
kernel runs in the OpenMP library that PyTorch has loaded. The number of tasks is fixed before OpenMP grants a
number of threads: thread t of n runs tasks t, t + n, t + 2n, ..., and the results depend on the tasks alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.signature import Address, KernelCall, Word

REGION_HEADER, CALL_HEADER = 3, 2  # integers before the calls of a region, and before the arguments of a call

NO_TEAM = bytes(24)  # in place of the addresses of OpenMP's functions
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _openmp() -> ctypes.CDLL | None:
    """Library of PyTorch's threads, found through the symbols of libtorch_cpu.so; None if they are missing."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library


@cache
def _team_functions(library: ctypes.CDLL) -> bytes:
    """Addresses of omp_get_thread_num, omp_get_num_threads and GOMP_barrier."""
    functions = library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier
    return _int64_struct(3).pack(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))


@cache
def _int64_struct(count: int) -> struct.Struct:
    return struct.Struct(f"{count}q")


@cache
def _program_function(address: int) -> Callable[[bytes], None]:
    """Python callable for the function at ``address``; cached, since creating it takes longer than a small kernel."""
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)


def program_function(module: KernelModule) -> Callable[[bytes], None]:
    """The function that runs a program, :data:`NO_TEAM` and its block, on this thread alone."""
    return _program_function(module.addresses["run_program"])


def single_thread_reason() -> str | None:
    """Return why kernels run on one thread in this process, or None if they run on torch.get_num_threads()."""
    if _openmp() is None:
        return "PyTorch's OpenMP library was not found"
    if _forked:
        return "this process was forked, and OpenMP's threads do not survive a fork"
    return None


def team_size(num_tasks: int) -> int:
    """Return the number of threads for ``num_tasks`` tasks."""
    return 1 if num_tasks == 1 or _openmp() is None or _forked else min(num_tasks, torch.get_num_threads())


def run(module: KernelModule, kernel: str, num_tasks: int, /, **arguments: Address | float) -> None:
    """Run ``kernel`` for every task, on at most torch.get_num_threads() threads.

    Raises:
        TypeError: the kernel's signature does not accept ``arguments``.
    """
    words = module.signatures[kernel].encode(arguments)
    call_bytes = 8 * (CALL_HEADER + len(words))
    block = _int64_struct(1 + REGION_HEADER + CALL_HEADER + len(words)).pack(
        1, num_tasks, 1, 8 * REGION_HEADER + call_bytes, module.addresses[kernel], call_bytes, *words
    )
    run_program(module, team_size(num_tasks), block)


def run_program(module: KernelModule, num_threads: int, block: bytes) -> None:
    """Run a program on ``num_threads`` threads; ``block`` is all of it but the first three integers (see
    ``kernels/run_program.py``)."""
    address = module.addresses["run_program"]
    library = _openmp() if num_threads > 1 else None
    if library is None:
        _program_function(address)(NO_TEAM + block)
    else:
        library.GOMP_parallel(address, _team_functions(library) + block, num_threads, 0)


@dataclass(frozen=True)
class ParallelRegion:
    """Kernel calls, each an address and arguments, that run one after the other for each of ``num_tasks`` tasks."""

    num_tasks: int
    calls: Sequence[KernelCall]


def encode_regions(regions: Sequence[ParallelRegion]) -> list[Word]:
    """Encode regions as the words that ``kernels/run_program.py`` reads; arguments are copied as they are."""
    block: list[Word] = [len(regions)]
    for region in regions:
        calls: list[Word] = [
            word
            for kernel, arguments in region.calls
            for word in (kernel, 8 * (CALL_HEADER + len(arguments)), *arguments)
        ]
        block += [region.num_tasks, len(region.calls), 8 * (REGION_HEADER + len(calls)), *calls]
    return block
