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
    "conv2d contiguous bf16 grad_weight", "conv2d depthwise forward", "conv2d depthwise grad_input",
    "conv2d depthwise grad_weight",
    "max_pool2d 3x3 stride 2", "conv_relu_pool 5x5", "softmax 10 classes", "softmax backward 10 classes",
    "the same with weights and smoothing 10 classes", "the same backward with weights and smoothing 10 classes",
    "cross-entropy of probabilities 10 classes", "cross-entropy of probabilities backward 10 classes",
    "relu_backward",
]  # fmt: skip


@pytest.mark.parametrize(
    "calls", [MOST_USED, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["most used", "others"]
)
def test_kernels_compile_for_an_h100(calls) -> None:
    command = [sys.executable, SCRIPT, *calls, "--arch", "90"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in run.stdout.splitlines())
    assert {row[0] for row in rows} == set(calls)
    for row in rows:
        kernel, numbers = row[1], dict(zip(header[2:], map(int, row[2:]), strict=True))
        assert numbers["spilled bytes"] == 0, kernel
        if kernel in PRODUCTS:
            assert numbers["cp.async 16"] >= PRODUCTS[kernel], f"{kernel}: an operand is not copied by 16 bytes"
            assert numbers["mma"] > 0, kernel
            assert numbers["registers"] <= 168, f"{kernel}: three programs with 128 threads each fit a multiprocessor"
