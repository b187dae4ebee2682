"""Memory of a training step: bytes saved for backward, and peak memory of the process.

Saved bytes are exact: autograd passes each tensor that it saves to a hook, and each storage counts once and whole,
even if a small view of it was saved, since all of it stays allocated. The peak is that of the process: its largest
resident set during training (VmHWM, reset before), minus what stays resident between steps. It includes what
PyTorch's counters miss: buffers of kernels and libraries. It is measured in a process in which only one contender
trains.
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

JSON_KEYS = {"step_bytes": "step", "process_bytes": "process"}
"""Keys in report.json of fields of :class:`PeakMemory` that have another name here."""


@dataclass(frozen=True)
class SavedBytes:
    """Bytes of the distinct storages that autograd saves.

    Attributes:
        own: storages that the operation allocated.
        given: storages that the caller holds anyway: inputs and parameters.
    """

    own: int
    given: int


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory in bytes.

    Attributes:
        step_bytes: peak above what is resident between steps; None if it cannot be measured.
        process_bytes: peak of the whole process, its libraries and compiled kernels included.
        how: which counter was read.
    """

    step_bytes: int | None
    process_bytes: int | None
    how: str


def saved_bytes(forward: Callable[[], Any], given: Iterable[Tensor]) -> SavedBytes:
    """Measure what autograd saves while ``forward`` runs and keeps until its result is dropped."""
    given_addresses = {_address(tensor) for tensor in given}
    storages: dict[tuple[str, int], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor  # autograd keeps it, so no address is reused while bytes are counted

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    own = sum(size for address, size in storages.items() if address not in given_addresses)
    shared = sum(size for address, size in storages.items() if address in given_addresses)
    del result
    return SavedBytes(own, shared)


def peak_memory(step: Callable[[], Any], steps: int, device: str | torch.device = "cpu") -> PeakMemory:
    """Measure the peak of ``steps`` steps, after two warm-up steps that compile and fill caches."""
    for _ in range(2):
        step()
    gc.collect()
    if torch.device(device).type == "cuda":
        return _cuda_peak(step, steps)
    allocator.trim()  # free memory would otherwise stay resident and hide a peak below it
    if (before := _status("VmRSS")) is None:
        return _rusage_peak(step, steps)
    if not _reset_high_water():
        return PeakMemory(None, _status("VmHWM"), "VmHWM since the process began: the kernel does not allow a reset")
    for _ in range(steps):
        step()
    highest = _status("VmHWM")
    trimmed = "after malloc_trim" if allocator.glibc() else "with what the allocator keeps"
    return PeakMemory(highest - before, highest, f"VmHWM of {steps} steps minus VmRSS before them, {trimmed}")


def _cuda_peak(step: Callable[[], Any], steps: int) -> PeakMemory:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    highest = torch.cuda.max_memory_allocated()
    how = f"torch.cuda.max_memory_allocated of {steps} steps minus what was allocated before"
    return PeakMemory(highest - before, highest, how)


def _rusage_peak(step: Callable[[], Any], steps: int) -> PeakMemory:
    try:
        import resource
    except ImportError:
        return PeakMemory(None, None, "not measured: this system has neither /proc/self/status nor getrusage")
    for _ in range(steps):
        step()
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return PeakMemory(None, highest, "ru_maxrss of the process since it began")


def _status(name: str) -> int | None:
    """Read VmRSS or VmHWM in bytes; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _reset_high_water() -> bool:
    """Reset VmHWM; return False if the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _address(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()
