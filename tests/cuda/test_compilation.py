"""The kernels compile for a GPU without one, keep their numbers in registers, and use what the hardware has.

Products copy both operands by 16 bytes and use tensor cores. Each test starts a process of its own, since this one
may have Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/compile_cuda_kernels.py"
# 16-byte copies of a thread, for three stages: both operands, one of them as high and low part in float32.
PRODUCTS = {"conv2d_gather_gemm": 36, "conv2d_grad_weight": 24, "conv2d_grad_weight_batch_last": 36}
MOST_USED = ["conv2d 3x3 7x7 forward", "conv2d 3x3 grad_weight", "max_pool2d backward 3x3 stride 2"]
OTHERS = [
    "conv2d contiguous grad_input", "conv2d contiguous bf16 grad_weight", "conv2d depthwise forward",
    "conv2d depthwise grad_input", "conv2d depthwise grad_weight",
    "max_pool2d 3x3 stride 2", "conv_relu_pool 5x5", "softmax 10 classes", "softmax backward 10 classes",
    "the same with weights and smoothing 10 classes", "the same backward with weights and smoothing 10 classes",
    "cross-entropy of probabilities 10 classes", "cross-entropy of probabilities backward 10 classes",
    "relu_backward",
]  # fmt: skip


def compiled(calls: list[str], *archs: int) -> list[tuple[str, dict[str, int]]]:
    """Each kernel of the calls, and the numbers of its compilation."""
    command = [sys.executable, SCRIPT, *calls, "--arch", *map(str, archs)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in run.stdout.splitlines())
    assert {row[0] for row in rows} == set(calls)
    return [(row[1], dict(zip(header[2:], map(int, row[2:]), strict=True))) for row in rows]


@pytest.mark.parametrize(
    "calls", [MOST_USED, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["most used", "others"]
)
def test_kernels_compile_for_an_h100(calls) -> None:
    for kernel, numbers in compiled(calls, 90):
        assert numbers["spilled bytes"] == 0, kernel
        if kernel in PRODUCTS:
            assert numbers["cp.async 16"] >= PRODUCTS[kernel], f"{kernel}: an operand is not copied by 16 bytes"
            assert numbers["mma"] > 0, kernel
            assert numbers["registers"] <= 168, f"{kernel}: three programs with 128 threads each fit a multiprocessor"


@pytest.mark.slow
def test_a_convolution_of_rgb_images_copies_its_weights_by_16_bytes_and_spills_nothing() -> None:
    """Pixels of three channels are copied by 4 bytes; the weights of a channel are 147 numbers and 13 zeros."""
    for kernel, numbers in compiled(["conv2d RGB forward"], 80, 90, 100):
        assert numbers["spilled bytes"] == 0, kernel
        if kernel == "conv2d_gather_gemm":
            assert numbers["cp.async 16"] >= 24


@pytest.mark.slow
def test_the_largest_tile_fits_into_the_shared_memory_of_every_gpu() -> None:
    """A program of compute capability 8.6, 8.9 or 12.0 has 99 KiB, of 8.0 163 KiB and of 9.0 227 KiB."""
    for kernel, numbers in compiled(["conv2d 3x3 s2 tf32 grad_weight"], 86, 120):
        assert numbers["shared bytes"] <= 99 * 1024, kernel
