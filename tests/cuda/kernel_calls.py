"""One call for each kernel for CUDA and each form of it, for ``scripts/compile_cuda_kernels.py``.

A call takes a launcher, and may not need values: with the recording launcher nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.relu import relu_backward
from tests.cuda import conv2d_calls

CALLS: dict[str, Callable[[Launcher], Any]] = {
    "relu_backward": lambda launch: relu_backward(launch, torch.empty(4096), torch.empty(4096), 0.5),
    "relu_backward bf16": lambda launch: relu_backward(
        launch, torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16), 0.0
    ),
    **conv2d_calls.CALLS,
}
