"""Convolution's kernels compile without a GPU, without spills, with 16-byte copies and tensor cores in products."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# 16-byte copies of a thread, for three stages: both operands, one of them as high and low part in float32.
PRODUCTS = {"conv2d_gather_gemm": 36, "conv2d_grad_weight": 24, "conv2d_grad_weight_batch_last": 36}
OTHERS = {
    "conv2d_pack", "conv2d_pack_images", "conv2d_batch_last", "conv2d_sum_output", "conv2d_sum_grad_weight",
    "conv2d_depthwise", "conv2d_depthwise_grad_input", "conv2d_depthwise_grad_weight",
}  # fmt: skip


def test_every_kernel_compiles_for_an_h100() -> None:
    pytest.importorskip("triton", reason="kernels for CUDA are written in Triton")
    calls = [
        "conv2d 3x3 7x7 forward", "conv2d 3x3 grad_weight", "conv2d contiguous bf16 grad_weight",
        *(f"conv2d depthwise {of}" for of in ("forward", "grad_input", "grad_weight")),
    ]  # fmt: skip
    command = [sys.executable, "scripts/compile_cuda_kernels.py", *calls, "--arch", "90"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    compiled = {kernel: tuple(map(int, numbers)) for _, kernel, *numbers in rows}
    assert compiled.keys() == PRODUCTS.keys() | OTHERS
    for kernel, (_, _, registers, spilled_bytes, _, async_copies, tensor_core_instructions) in compiled.items():
        assert spilled_bytes == 0, kernel
        if kernel in PRODUCTS:
            assert async_copies >= PRODUCTS[kernel], f"{kernel}: an operand is not copied by 16 bytes"
            assert tensor_core_instructions > 0, kernel
            assert registers <= 168, f"{kernel}: three programs with 128 threads each fit a multiprocessor"
