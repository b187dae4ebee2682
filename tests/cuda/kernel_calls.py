"""One call for each kernel for CUDA and each form of it, for ``scripts/compile_cuda_kernels.py``.

A call takes a launcher, and may not need values: with the recording launcher nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from manualgrad import Sequential, nn
from manualgrad.cuda import cross_entropy as loss
from manualgrad.cuda.conv_relu_pool import conv_relu_pool_forward
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.max_pool2d import max_pool2d_backward, max_pool2d_forward, relu_pool_backward, relu_pool_forward
from manualgrad.cuda.relu import relu_backward
from manualgrad.cuda.softmax import softmax_backward, softmax_forward
from manualgrad.models import DocumentCNN
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry
from manualgrad.ops.windows import Windows
from tests.cuda import conv2d_calls
from tests.cuda.network_calls import descent_calls, network_calls


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
    images, w, b = torch.empty(4, 1, 28, 28), torch.empty(16, 1, 5, 5), torch.empty(16)
    return {
        "conv_relu_pool 5x5": lambda launch: conv_relu_pool_forward(launch, images, w, b, geometry),
        "relu_pool": lambda launch: relu_pool_forward(launch, x, geometry),
        "relu_pool backward": lambda launch: relu_pool_backward(launch, g, index, geometry),
    }


def _rows(name: str, z: torch.Tensor) -> dict[str, Callable[[Launcher], Any]]:
    """Softmax and cross-entropy of the logits ``z``, (rows, classes)."""
    labels, weight = torch.empty(len(z), dtype=torch.int64), torch.empty(z.shape[1])
    options, g, stats, factor = (-100, "mean", 0.1), torch.empty(()), torch.empty(3, len(z)), torch.empty(())
    no_options = (-100, "mean", 0.0)
    backward = loss.cross_entropy_from_labels_backward
    return {
        f"softmax {name}": lambda launch: softmax_forward(launch, z, 1),
        f"softmax backward {name}": lambda launch: softmax_backward(launch, z, z, 1),
        f"cross-entropy of labels {name}": lambda launch: loss.cross_entropy_from_labels(
            launch, z, labels, None, *no_options
        ),
        f"the same with weights and smoothing {name}": lambda launch: loss.cross_entropy_from_labels(
            launch, z, labels, weight, *options
        ),
        f"cross-entropy of labels backward {name}": lambda launch: backward(
            launch, g, z, labels, None, stats, -100, 0.0, factor
        ),
        f"the same backward with weights and smoothing {name}": lambda launch: backward(
            launch, g, z, labels, weight, stats, -100, 0.1, factor
        ),
        f"cross-entropy of probabilities {name}": lambda launch: loss.cross_entropy_forward(launch, z, z, True),
        f"cross-entropy of probabilities backward {name}": lambda launch: loss.cross_entropy_backward(
            launch, g, z, z
        ),
    }


def _other_poolings() -> Sequential:
    """A network with windows that overlap, a border around them, and dilation, for images of 32×32."""
    blocks = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
              nn.Conv2d(32, 64, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(3, 2)]  # fmt: skip
    return Sequential(*blocks, nn.Flatten(), nn.Dense(64 * 7 * 7, 128), nn.ReLU(), nn.Dense(128, 10))


_3X3 = make_max_pool2d_geometry((4, 64, 112, 112), 3, 2, 1, 1, False)
_2X2 = make_max_pool2d_geometry((4, 16, 24, 24), 2, None, 0, 1, False, channels_last=False)
_13X13 = make_max_pool2d_geometry((4, 16, 26, 26), 13, 13, 0, 2, True)

CALLS: dict[str, Callable[[Launcher], Any]] = {
    "relu_backward": lambda launch: relu_backward(launch, torch.empty(4096), torch.empty(4096), 0.5),
    "relu_backward bf16": lambda launch: relu_backward(
        launch, torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16), 0.0
    ),
    **conv2d_calls.CALLS,
    **_pools("3x3 stride 2", torch.empty(4, 112, 112, 64), _3X3),
    **_pools("3x3 stride 2 bf16", torch.empty(4, 112, 112, 64, dtype=torch.bfloat16), _3X3),
    **_pools("2x2 contiguous", torch.empty(4, 16, 24, 24).permute(0, 2, 3, 1), _2X2),
    **_pools("13x13 dilated", torch.empty(4, 26, 26, 16), _13X13),
    **_relu_pools(torch.empty(4, 24, 24, 16)),
    **_rows("10 classes", torch.empty(64, 10)),
    **_rows("1000 classes", torch.empty(8192, 1000)),
    **_rows("50000 classes", torch.empty(64, 50000)),
    "cross-entropy of pixels": lambda launch: loss.cross_entropy_from_labels(
        launch, torch.empty(2, 21, 64, 64), torch.empty(2, 64, 64, dtype=torch.int64), None, -100, "mean", 0.0
    ),
    "network 64": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 64),
    "network 64 split": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 64, conv_split=4),
    "network 512": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 512),
    "network 4096": lambda launch: network_calls(launch, DocumentCNN(), (1, 28, 28), 4096),
    "descent 64": lambda launch: descent_calls(launch, DocumentCNN(), (1, 28, 28), 64),
    "network of other sizes": lambda launch: network_calls(
        launch, DocumentCNN(3, (29, 33), (20, 40, 72), (3, 4), (130,), 40, subgradient=0.0), (3, 29, 33), 64
    ),
    "network of other poolings": lambda launch: network_calls(launch, _other_poolings(), (3, 32, 32), 128),
}
