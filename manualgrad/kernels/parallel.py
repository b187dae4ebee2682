"""Kernels inside torch's own pool of threads.

Torch's threads wait for work by spinning. Threads of another pool would fight with them for the cores, and each call
would cost more than it saves; so a kernel is handed to the OpenMP library that torch itself has loaded. Work is cut
into slots before anybody knows how many threads come: a thread takes one slot in every so many, and what is computed
depends on the slots alone."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

HEADER = 3  # what the emitted teams read before a kernel's arguments: two functions' addresses, and the slots
_NOBODY = (0, 0)  # in their place, for a thread alone
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
        library.omp_get_thread_num, library.omp_get_num_threads  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library


@cache
def _askers() -> tuple[int, int]:
    """The addresses of omp_get_thread_num and omp_get_num_threads."""
    library = _openmp()
    found = (ctypes.cast(f, ctypes.c_void_p).value for f in (library.omp_get_thread_num, library.omp_get_num_threads))
    return tuple(found)


@cache
def _numbers(count: int) -> struct.Struct:
    """What writes ``count`` numbers one after the other, 8 bytes each."""
    return struct.Struct(f"{count}q")


@cache
def _alone(address: int) -> Callable[[bytes], None]:
    """The function at ``address``, callable: making it so takes longer than the smallest kernels run."""
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)


def why_alone() -> str | None:
    """Why kernels run on one thread here, whatever torch's number; None where they need not."""
    if _openmp() is None:
        return "torch's OpenMP library was not found"
    if _forked:
        return "this process was forked, and OpenMP's threads do not survive that"
    return None


def run(code: object, kernel: str, slots: int, arguments: list[int]) -> None:
    """``kernel(arguments, slot)`` for every slot, each on one of at most torch.get_num_threads() threads."""
    library = _openmp()
    threads = 1 if library is None or _forked else min(slots, torch.get_num_threads())
    numbers = _numbers(HEADER + len(arguments))
    if threads == 1:
        _alone(code.addresses[f"{kernel}_alone"])(numbers.pack(*_NOBODY, slots, *arguments))
        return
    block = numbers.pack(*_askers(), slots, *arguments)
    library.GOMP_parallel(code.addresses[f"{kernel}_team"], block, threads, 0)


def as_float(number: float) -> int:
    """The 8 bytes of a kernel's argument that begin with ``number`` as a float."""
    return struct.unpack("i", struct.pack("f", number))[0]
