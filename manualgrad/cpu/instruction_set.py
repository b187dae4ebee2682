"""The instruction set of the kernels in use, and the choice between kernels and formulas."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from manualgrad.cpu import team
from manualgrad.cpu.jit import (
    LANES,
    KernelModule,
    Unavailable,
    instruction_sets,
    load_module,
    require_executable_memory,
)

ENVIRONMENT_VARIABLE = "MANUALGRAD_KERNELS"
_CHOICES = ("auto", *LANES, "off")
_choice = ""  # until choose() is called, by a user or by the first call of current_module()
_choosing = False  # True in choose(), which holds _lock
_module: KernelModule | None = None
_reason = ""

# A fork waits for the end of a compilation in another thread: in the child, locks that LLVM holds would never be
# released. A signal handler that interrupts a compilation in its own thread can fork at once, since Python runs it
# between two calls of LLVM.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class Available:
    """The kernels in use.

    Attributes:
        instructions: "avx512", "avx2", or None if formulas compute everything.
        why: the reason for this instruction set, or for using none.
        threads: how many threads a kernel uses, and the reason if it is one.
        cache_problem: the reason why every process compiles the kernels again, "" if they are in the cache.
        cuda: the kernels for tensors on CUDA, or the reason why there are none.
    """

    instructions: str | None
    why: str
    threads: str
    cache_problem: str
    cuda: str = ""

    def __str__(self) -> str:
        if self.instructions is None:
            return f"no kernels, formulas compute everything: {self.why}"
        not_cached = f", not cached: {self.cache_problem}" if self.cache_problem else ""
        return f"kernels in {self.instructions} ({self.why}), {self.threads}{not_cached}"


def available() -> Available:
    """Return the kernels in use for float32 tensors on the CPU; compiles them if that is still to be done.

    Formulas compute everything that kernels do not support, such as other dtypes and devices, forward mode and
    ``torch.func``."""
    module = current_module()
    reason = team.single_thread_reason()
    threads = f"one thread: {reason}" if reason else "torch.get_num_threads() threads of PyTorch's own pool"
    if module is None:
        return Available(None, why_none(), threads, "")
    return Available(module.instructions, _reason, threads, module.cache_problem)


def choose(name: str) -> None:
    """Use the kernels in ``name`` from now on: "avx512", "avx2", "auto" for the fastest here, "off" for formulas.

    The environment variable MANUALGRAD_KERNELS makes the same choice for a whole run.

    Raises:
        ValueError: ``name`` is none of these, or this machine does not support the instruction set.
    """
    global _choosing
    if name not in _CHOICES:
        raise ValueError(f"kernels must be one of {', '.join(map(repr, _CHOICES))}, got {name!r}")
    with _lock:
        _choosing = True
        try:
            _choose(name)
        finally:
            _choosing = False


def _choose(name: str) -> None:
    global _choice, _module, _reason
    reason = ""
    try:
        supported = instruction_sets()
        require_executable_memory()
    except Unavailable as error:
        if name in LANES:
            raise ValueError(f"kernels in {name} are not available: {error}") from None
        supported, reason = (), str(error)
    if name in LANES and name not in supported:
        raise ValueError(f"this processor does not support {name}, only {', '.join(supported)}")
    if name == "off":
        supported, reason = (), "kernels are switched off"
    elif supported:
        supported, reason = (supported, "the fastest here") if name == "auto" else ((name,), "as chosen")
    _module, _reason = load_module(supported[0]) if supported else None, reason
    _choice = name


def load_group(instructions: str, group: str) -> KernelModule:
    """Return the kernels of a group; its first call compiles them, and a fork of another thread waits for it."""
    with _lock:
        return load_module(instructions, group)


def current_module() -> KernelModule | None:
    """Return the kernels in use, or None if formulas compute everything.

    The first call compiles them. A signal handler that interrupts the compilation gets None."""
    if not _choice:
        with _lock:  # this thread has it already if _choosing
            if not _choice and not _choosing:
                name = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
                try:
                    choose(name)
                except ValueError as error:
                    raise ValueError(f"{ENVIRONMENT_VARIABLE}={name}: {error}") from None
    return _module


def switched_off() -> bool:
    """Return True if a user has switched all kernels off."""
    return (_choice or os.environ.get(ENVIRONMENT_VARIABLE, "auto")) == "off"


def why_none() -> str:
    """Return the reason why :func:`current_module` returned None."""
    return _reason or "kernels are being compiled"
