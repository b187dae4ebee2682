"""Which compiled kernels there are on this machine, and which of them are in use."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from manualgrad.cpu import team
from manualgrad.cpu.jit import LANES, KernelModule, Unavailable, code, instruction_sets

VARIABLE = "MANUALGRAD_KERNELS"
_CHOICES = ("auto", *LANES, "off")
_lock = threading.Lock()
_chosen = ""  # until the variable has been looked at, or somebody has chosen
_in_use: KernelModule | None = None
_why = ""

# A fork waits until nothing is being compiled: LLVM's own locks would stay closed in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class Available:
    """``instructions`` is "avx512", "avx2", or None where formulas serve for everything; ``why`` says for what
    reason; ``threads`` says how many a kernel may use, and why so many."""

    instructions: str | None
    why: str
    threads: str

    def __str__(self) -> str:
        if self.instructions is None:
            return f"no kernels, formulas serve: {self.why}"
        return f"kernels in {self.instructions} ({self.why}), {self.threads}"


def available() -> Available:
    """The kernels that float32 tensors on the CPU are given to, and why those; compiles them if that is still to be
    done.

    What a kernel does not take (other dtypes and devices, strides, padding, groups; derivatives of derivatives,
    forward mode, ``torch.func``) is computed by the formulas everywhere."""
    found = in_use()
    alone = team.single_thread_reason()
    many = "as many threads as torch.get_num_threads() says, in torch's own pool"
    threads = f"one thread: {alone}" if alone else many
    return Available(None if found is None else found.instructions, _why, threads)


def choose(name: str) -> None:
    """Uses the kernels called "avx512" or "avx2", the best there are ("auto"), or none ("off"), from now on.

    The environment variable MANUALGRAD_KERNELS says the same for a whole run.

    Raises:
        ValueError: another name, or instructions that this processor does not have.
    """
    global _chosen, _in_use, _why
    with _lock:
        if name not in _CHOICES:
            raise ValueError(f"kernels are {', '.join(map(repr, _CHOICES))}, got {name!r}")
        try:
            found = instruction_sets()
        except Unavailable as reason:
            if name in LANES:
                raise ValueError(f"no kernels in {name} here: {reason}") from None
            found, why = (), str(reason)
        if name in LANES and name not in found:
            raise ValueError(f"this processor does not have what {name} needs; it has {', '.join(found)}")
        if name == "off":
            found, why = (), "they were switched off"
        elif found:
            found, why = (found, "the best here") if name == "auto" else ((name,), "as was chosen")
        _in_use, _why = code(found[0]) if found else None, why
        _chosen = name


def in_use() -> KernelModule | None:
    """The kernels to be used; None where there are none."""
    if not _chosen:
        name = os.environ.get(VARIABLE, "auto")
        try:
            choose(name)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}={name}: {error}") from None
    return _in_use
