"""One call for each kernel for CUDA and each form of it, for ``scripts/compile_cuda_kernels.py``.

A call takes a launcher, and may not need values: with the recording launcher nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.relu import relu_backward
from manualgrad.models import DocumentCNN
from tests.cuda.network_calls import network_calls

CALLS: dict[str, Callable[[Launcher], Any]] = {
    "relu_backward": lambda launch: relu_backward(launch, torch.empty(4096), torch.empty(4096), 0.5),
    "relu_backward bf16": lambda launch: relu_backward(
        launch, torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16), 0.0
    ),
    "network 64": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 64),
    "network 512": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 512),
    "network 4096": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 4096),
    "network of other sizes": lambda launch: network_calls(
        launch, DocumentCNN(3, (29, 33), (20, 40, 72), (3, 4), (130,), 40, subgradient=0.0), (3, 29, 33), 64
    ),
}
