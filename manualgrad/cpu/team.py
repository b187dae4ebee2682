"""Kernels inside torch's own pool of threads.

Torch's threads wait for work by spinning. Threads of another pool would fight with them for the cores, and each call
would cost more than it saves; so a kernel is handed to the OpenMP library that torch itself has loaded. Work is cut
into slots before anybody knows how many threads come: a thread takes one slot in every so many, and what is computed
depends on the slots alone."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from manualgrad.cpu.jit import KernelModule

STAGE, STEP = 3, 2  # numbers before the steps of a stage, and before a step's arguments

_NOBODY = bytes(24)  # what a thread alone asks
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The library behind torch's operators: looked up among those that libtorch_cpu.so itself depends on."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library


@cache
def _team() -> bytes:
    """The addresses of omp_get_thread_num, omp_get_num_threads and GOMP_barrier."""
    library = _openmp()
    functions = library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier
    return _numbers(3).pack(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))


@cache
def _numbers(count: int) -> struct.Struct:
    """What writes ``count`` numbers one after the other, 8 bytes each."""
    return struct.Struct(f"{count}q")


@cache
def _alone(address: int) -> Callable[[bytes], None]:
    """The function at ``address``, callable: making it so takes longer than the smallest kernels run."""
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)


def single_thread_reason() -> str | None:
    """Why kernels run on one thread here, whatever torch's number; None where they need not."""
    if _openmp() is None:
        return "torch's OpenMP library was not found"
    if _forked:
        return "this process was forked, and OpenMP's threads do not survive that"
    return None


def team_size(slots: int) -> int:
    """How many threads share that many slots."""
    return 1 if slots == 1 or _openmp() is None or _forked else min(slots, torch.get_num_threads())


def run(code: KernelModule, kernel: str, slots: int, arguments: Sequence[int]) -> None:
    """``kernel(arguments, slot)`` for every slot, each on one of at most torch.get_num_threads() threads."""
    step = 8 * (STEP + len(arguments))
    block = _numbers(1 + STAGE + STEP + len(arguments)).pack(
        1, slots, 1, 8 * STAGE + step, code.addresses[kernel], step, *arguments
    )
    run_block(code, team_size(slots), block)


def run_steps(code: KernelModule, steps: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Kernels and their arguments, one after the other on this thread."""
    block = encode_regions([ParallelRegion(1, [(code.addresses[kernel], arguments) for kernel, arguments in steps])])
    run_block(code, 1, _numbers(len(block)).pack(*block))


def run_block(code: KernelModule, threads: int, block: bytes) -> None:
    """A program (see ``team_program.py``) without its first three numbers, on that many threads."""
    if threads == 1:
        _alone(code.addresses["program"])(_NOBODY + block)
    else:
        _openmp().GOMP_parallel(code.addresses["program"], _team() + block, threads, 0)


@dataclass(frozen=True)
class ParallelRegion:
    """Kernels' addresses and arguments, to be run one after the other for each of so many slots."""

    slots: int
    steps: Sequence[tuple[int, Sequence[Any]]]


def encode_regions(stages: Sequence[ParallelRegion]) -> list[Any]:
    """The stages as ``team_program.py`` reads them; arguments may be anything."""
    block: list[Any] = [len(stages)]
    for stage in stages:
        steps = [
            word for kernel, arguments in stage.steps for word in (kernel, 8 * (STEP + len(arguments)), *arguments)
        ]
        block += [stage.slots, len(stage.steps), 8 * (STAGE + len(steps)), *steps]
    return block


def float_bits(number: float) -> int:
    """The 8 bytes of a kernel's argument that begin with ``number`` as a float."""
    return struct.unpack("i", struct.pack("f", number))[0]
