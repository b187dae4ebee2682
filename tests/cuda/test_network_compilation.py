"""Promise: the kernels of a network compile without a GPU, spill next to nothing, and multiply by tensor cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # half a minute of compilation each
@pytest.mark.parametrize(
    ("batch_size", "more_kernels", "spilled_bytes"), [(64, set(), 0), (4096, {"dense_grad_input"}, 32)]
)
def test_every_kernel_of_documentcnn_compiles_for_an_h100(batch_size, more_kernels, spilled_bytes) -> None:
    pytest.importorskip("triton", reason="kernels for CUDA are written in Triton")
    command = [sys.executable, "scripts/compile_cuda_kernels.py", f"network {batch_size}", "--arch", "90"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {row[1] for row in rows} == {
        "prepare", "conv_relu_pool_forward", "dense_forward", "head", "backward", "first_grad_weight", "reduce",
        "conv_grad_input", *more_kernels,
    }  # fmt: skip
    assert max(int(row[5]) for row in rows) <= spilled_bytes, "a kernel spills registers"
    assert all(row[-1] != "0" for row in rows if row[1] in ("dense_forward", "backward"))
