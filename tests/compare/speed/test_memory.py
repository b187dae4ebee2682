"""Promise: saved bytes are exact, peak memory has its counter, and the allocator is tuned where that is possible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import manualgrad as mg
from compare.speed import memory
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.training import allocator


def test_saved_bytes_are_exact() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    assert memory.saved_bytes(lambda: torch.relu(x), [x]) == memory.SavedBytes(own=3 * 5 * 4, given=0)  # its output
    assert memory.saved_bytes(lambda: mg.relu(x), [x]) == memory.SavedBytes(own=0, given=3 * 5 * 4)  # its input
    assert memory.saved_bytes(lambda: mg.relu(x + 1), [x]) == memory.SavedBytes(own=3 * 5 * 4, given=0)
    assert memory.saved_bytes(lambda: x + 1, [x]) == memory.SavedBytes(own=0, given=0)


def test_saved_bytes_count_a_storage_once_and_whole() -> None:
    x = torch.randn(10, requires_grad=True)

    def forward() -> Tensor:
        y = x + 1
        return y[:2] * y[2:4]  # two views of four numbers; all ten stay allocated

    assert memory.saved_bytes(forward, [x]) == memory.SavedBytes(own=40, given=0)


def test_saved_bytes_of_the_fused_layer_are_one_per_window() -> None:
    x, w = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    saved = memory.saved_bytes(lambda: conv2d_relu_max_pool2d(x, w), [x, w])
    assert saved == memory.SavedBytes(own=2 * 4 * 3 * 3, given=4 * (x.numel() + w.numel()))


def test_peak_memory_includes_a_buffer_that_the_step_frees() -> None:
    size = 96 * 2**20

    def step() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = memory.peak_memory(step, 2)
    if peak.step_bytes is None:
        pytest.skip(f"peak memory of a step: {peak.how}")
    assert 0.95 * size < peak.step_bytes < 1.1 * size
    assert peak.process_bytes > peak.step_bytes


def test_peak_memory_names_the_counter_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    peak = memory.peak_memory(lambda: None, 1)
    assert peak.step_bytes is None and "since the process began" in peak.how
    monkeypatch.setattr(memory, "_status", lambda name: None)
    peak = memory.peak_memory(lambda: None, 1)
    assert peak.step_bytes is None and ("ru_maxrss" in peak.how or "not measured" in peak.how)


# ---------------------------------------------------------------------------------------------------- allocator


def test_without_glibc_the_allocator_is_not_tuned_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.platform, "system", lambda: "Darwin")
    tuning = allocator.tune()
    assert not tuning.tuned and "Darwin, not glibc" in tuning.description
    assert allocator.trim() is False


@pytest.mark.parametrize(
    "refused,tuned,description",
    [((-4,), True, "refused M_MMAP_MAX; the others"), ((-1, -2, -4), False, "refused all")],
)
def test_settings_that_glibc_refuses_are_named(
    refused: tuple[int, ...], tuned: bool, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        @staticmethod
        def mallopt(code: int, value: int) -> int:
            return int(code not in refused)

    monkeypatch.setattr(allocator, "glibc", Library)
    tuning = allocator.tune()
    assert tuning.tuned is tuned and description in tuning.description


FAULTS = """
import ctypes, runpy, sys
allocator = runpy.run_path(sys.argv[1], run_name="allocator")
if allocator["glibc"]() is None:
    sys.exit("no glibc")
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size):
    before = allocator["page_faults"]()
    for _ in range(10):
        first, second = library.malloc(size), library.malloc(size)
        library.memset(first, 1, size); library.memset(second, 1, size)
        library.free(first); library.free(second)
    return allocator["page_faults"]() - before
default = faults(40 << 20)
allocator["tune"]()
faults(40 << 20)
print(default, faults(40 << 20))
"""  # noqa: E501


def test_tuning_avoids_page_faults() -> None:
    path = Path(allocator.__file__)
    run = subprocess.run([sys.executable, "-c", FAULTS, str(path)], capture_output=True, text=True, timeout=60)
    if "no glibc" in run.stderr:
        pytest.skip("no glibc here")
    default, tuned = map(int, run.stdout.split())
    assert default > 100 and tuned < default / 10


def test_a_process_with_the_default_allocator_is_not_tuned_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1:glibc.cpu.hwcaps=x")
    monkeypatch.setenv("KEPT", "yes")
    environment = allocator.env_without_malloc_tuning()
    assert "MALLOC_TRIM_THRESHOLD_" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.cpu.hwcaps=x"
    assert environment["KEPT"] == "yes"
