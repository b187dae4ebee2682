"""Memory of a training step: bytes that are saved for backward, and the peak of the process.

Saved bytes are exact: autograd shows each tensor that it packs, and each storage is counted once, whole, however
little of it was saved, since all of it stays. The peak is the process's own: its largest resident set while it trains
(VmHWM, set back before), less what stays resident between steps. It sees what PyTorch's counters do not: buffers of
kernels and of libraries. It is read in a process in which one side alone trains.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from manualgrad.training import allocator


@dataclass(frozen=True)
class Saved:
    """Bytes of the distinct storages that autograd keeps: ``own`` made by the operation, ``given`` held by the
    caller anyway (inputs and parameters)."""

    own: int
    given: int


@dataclass(frozen=True)
class Peak:
    """``step``: bytes above what is resident between steps; None where it cannot be told. ``process``: all of the
    process, its libraries and compiled kernels included. ``how``: what was read."""

    step: int | None
    process: int | None
    how: str


def saved_bytes(forward: Callable[[], Any], given: Iterable[Tensor]) -> Saved:
    """What autograd saves while ``forward`` runs, and until its result is let go."""
    known = {_address(tensor) for tensor in given}
    storages: dict[tuple[str, int], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor  # kept by autograd, so that no address is used twice while we count

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    own = sum(size for address, size in storages.items() if address not in known)
    shared = sum(size for address, size in storages.items() if address in known)
    del result
    return Saved(own, shared)


def peak(step: Callable[[], Any], steps: int, device: str | torch.device = "cpu") -> Peak:
    """Of ``steps`` steps, after two that are not watched: they compile, and make what later steps find made."""
    for _ in range(2):
        step()
    gc.collect()
    if torch.device(device).type == "cuda":
        return _cuda_peak(step, steps)
    allocator.trim()  # what is free stays resident otherwise, and would hide a peak below it
    if (before := _status("VmRSS")) is None:
        return _rusage_peak(step, steps)
    if not _reset_high_water():
        return Peak(None, _status("VmHWM"), "VmHWM since the process began: the kernel does not let it be set back")
    for _ in range(steps):
        step()
    highest = _status("VmHWM")
    trimmed = "after malloc_trim" if allocator.glibc() else "with what the allocator keeps"
    return Peak(highest - before, highest, f"VmHWM of {steps} steps less VmRSS before them, {trimmed}")


def _cuda_peak(step: Callable[[], Any], steps: int) -> Peak:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    highest = torch.cuda.max_memory_allocated()
    return Peak(
        highest - before, highest, f"torch.cuda.max_memory_allocated of {steps} steps, less what is held before"
    )


def _rusage_peak(step: Callable[[], Any], steps: int) -> Peak:
    try:
        import resource
    except ImportError:
        return Peak(None, None, "no reading: this system has neither /proc/self/status nor getrusage")
    for _ in range(steps):
        step()
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Peak(None, highest, "ru_maxrss of the process since it began")


def _status(name: str) -> int | None:
    """Bytes of VmRSS or VmHWM; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _address(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()
