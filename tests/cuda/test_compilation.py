"""The kernels around the convolution compile for a GPU without one, and keep their numbers in registers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/compile_cuda_kernels.py"
CALLS = [
    "max_pool2d 3x3 stride 2", "max_pool2d backward 3x3 stride 2", "conv_relu_pool 5x5", "softmax 10 classes",
    "softmax backward 10 classes", "the same with weights and smoothing 10 classes",
    "the same backward with weights and smoothing 10 classes", "cross-entropy of probabilities 10 classes",
    "cross-entropy of probabilities backward 10 classes", "relu_backward",
]  # fmt: skip


def test_kernels_compile_and_spill_no_registers() -> None:
    """In a process of its own: this one may have Triton's interpreter."""
    command = [sys.executable, SCRIPT, *CALLS, "--arch", "90"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in run.stdout.splitlines())
    assert {row[0] for row in rows} == set(CALLS)
    assert [row for row in rows if row[header.index("spilled bytes")] != "0"] == []
