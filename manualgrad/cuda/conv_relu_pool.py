"""Convolution, ReLU and 2×2 pooling in one kernel on CUDA: takes and returns tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.kernels import conv_relu_pool as kernels
from manualgrad.cuda.launch import MAX_GRID, Launcher
from manualgrad.cuda.tensor_checks import needs_64_bits, unsupported_tensors

BM, BN = 128, 16  # windows and channels of a program: 64 sums for each of 128 threads
MAX_KERNEL_WIDTH = 16  # products of one row of the kernel are unrolled


def unsupported_conv_relu_pool_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    """Return the reason why :func:`conv_relu_pool_forward` does not support the arguments, "" if it does."""
    windows = geometry.convolution.windows
    if x.shape[1] != 1:
        return "layer by layer it is faster for more than one input channel"
    if windows.stride != (1, 1) or any(windows.padding) or windows.kernel_size[1] > MAX_KERNEL_WIDTH:
        return "the convolution has a stride, padding or a wide kernel"
    if w.shape[0] > MAX_GRID * BN:
        return "there are too many channels"
    return unsupported_tensors(x, w, b)


def conv_relu_pool_forward(
    launch: Launcher, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any
) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and its pooling indices, both (N, C_out, H_out, W_out), channels_last."""
    (batch, out_channels), (height, width) = (x.shape[0], w.shape[0]), geometry.pooling.output_size
    out = x.new_empty(batch, height, width, out_channels)
    pool_index = torch.empty_like(out, dtype=torch.uint8)
    num_windows, (kernel_height, kernel_width) = batch * height * width, geometry.convolution.windows.kernel_size
    launch(
        kernels.conv_relu_pool_forward, (-(-num_windows // BM), -(-out_channels // BN)), out, pool_index, x, w, b,
        num_windows, height, width, out_channels, x.stride(0), *x.stride()[2:], w.stride(0), *w.stride()[2:],
        0 if b is None else b.stride(0), KH=kernel_height, KW=kernel_width, FLIP=geometry.convolution.flip_kernel,
        WIDE=needs_64_bits(x, out), BM=BM, BN=BN,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2), pool_index.permute(0, 3, 1, 2)
