"""One call for each kernel for CUDA and each form of it, for ``scripts/compile_cuda_kernels.py``.

A call takes a launcher, and may not need values: with the recording launcher nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.max_pool2d import max_pool2d_backward, max_pool2d_forward, relu_pool_backward, relu_pool_forward
from manualgrad.cuda.relu import relu_backward
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry
from manualgrad.ops.windows import Windows


def _pools(name: str, x: torch.Tensor, geometry: MaxPool2dGeometry) -> dict[str, Callable[[Launcher], Any]]:
    """Forward and backward of a pooling of ``x``, (N, H, W, C)."""
    g = x.new_empty(x.shape[0], *geometry.output_size, x.shape[3]).permute(0, 3, 1, 2)
    index = torch.empty_like(g, dtype=geometry.index_dtype)
    return {
        f"max_pool2d {name}": lambda launch: max_pool2d_forward(launch, x, geometry),
        f"max_pool2d backward {name}": lambda launch: max_pool2d_backward(launch, g, index, geometry),
    }


def _relu_pools(x: torch.Tensor) -> dict[str, Callable[[Launcher], Any]]:
    pooling = make_max_pool2d_geometry((4, 16, 24, 24), 2, None, 0, 1, False)
    geometry = ConvReLUPoolGeometry(Conv2dGeometry(Windows((5, 5)), (28, 28)), pooling, 0.5)
    g = torch.empty(4, 12, 12, 16).permute(0, 3, 1, 2)
    index = torch.empty_like(g, dtype=torch.uint8)
    return {
        "relu_pool": lambda launch: relu_pool_forward(launch, x, geometry),
        "relu_pool backward": lambda launch: relu_pool_backward(launch, g, index, geometry),
    }


_3X3 = make_max_pool2d_geometry((4, 64, 112, 112), 3, 2, 1, 1, False)
_2X2 = make_max_pool2d_geometry((4, 16, 24, 24), 2, None, 0, 1, False, channels_last=False)
_13X13 = make_max_pool2d_geometry((4, 16, 26, 26), 13, 13, 0, 2, True)

CALLS: dict[str, Callable[[Launcher], Any]] = {
    "relu_backward": lambda launch: relu_backward(launch, torch.empty(4096), torch.empty(4096), 0.5),
    "relu_backward bf16": lambda launch: relu_backward(
        launch, torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16), 0.0
    ),
    **_pools("3x3 stride 2", torch.empty(4, 112, 112, 64), _3X3),
    **_pools("3x3 stride 2 bf16", torch.empty(4, 112, 112, 64, dtype=torch.bfloat16), _3X3),
    **_pools("2x2 contiguous", torch.empty(4, 16, 24, 24).permute(0, 2, 3, 1), _2X2),
    **_pools("13x13 dilated", torch.empty(4, 26, 26, 16), _13X13),
    **_relu_pools(torch.empty(4, 24, 24, 16)),
}
