"""Max-pooling on CUDA, alone and after a ReLU: takes and returns tensors.

``geometry`` is a ``MaxPool2dGeometry`` of ``ops/max_pool2d_geometry.py``, or a ``ConvReLUPoolGeometry`` of
``ops/conv_relu_pool_geometry.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.kernels import max_pool2d as kernels
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.tensor_checks import needs_64_bits, unsupported_tensors

BLOCK = 1024
MAX_UNROLLED = 36  # places of a window; larger windows are loops, which compile in less time


def unsupported_max_pool2d_forward(x: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`max_pool2d_forward` does not support the arguments, "" if it does."""
    return unsupported_tensors(x)


def max_pool2d_forward(launch: Launcher, x: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """P(x) and the pooling index of each maximum: (N, H, W, C) to two (N, H_out, W_out, C)."""
    return _forward(launch, x, geometry, geometry.channels_last, relu=False)


def unsupported_max_pool2d_backward(g: Tensor, pool_index: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`max_pool2d_backward` does not support the arguments, "" if it does."""
    return unsupported_tensors(g) or unsupported_tensors(pool_index, dtypes=(torch.uint8, torch.int32))


def max_pool2d_backward(launch: Launcher, g: Tensor, pool_index: Tensor, geometry: Any) -> Tensor:
    """P⁻¹(g): (N, C, H_out, W_out) to (N, C, H, W), in the memory format of the geometry."""
    return _backward(launch, g, pool_index, geometry, geometry.channels_last, None)


def unsupported_relu_pool_forward(z: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`relu_pool_forward` does not support the arguments, "" if it does."""
    return unsupported_tensors(z)


def relu_pool_forward(launch: Launcher, z: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """P(R(z)) and its pooling indices: (N, H, W, C) to two (N, H_out, W_out, C)."""
    return _forward(launch, z, geometry.pooling, True, relu=True)


def unsupported_relu_pool_backward(g: Tensor, pool_index: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`relu_pool_backward` does not support the arguments, "" if it does."""
    return unsupported_tensors(g) or unsupported_tensors(pool_index, dtypes=(torch.uint8,))


def relu_pool_backward(launch: Launcher, g: Tensor, pool_index: Tensor, geometry: Any) -> Tensor:
    """P⁻¹(g) R': (N, C, H_out, W_out) to (N, C, H, W), channels_last."""
    return _backward(launch, g, pool_index, geometry.pooling, True, float(geometry.subgradient))


def _forward(launch: Launcher, x: Tensor, pooling: Any, channels_last: bool, *, relu: bool) -> tuple[Tensor, Tensor]:
    """Results in channels_last or contiguous memory, whatever the memory order of ``x`` is."""
    shape = (x.shape[0], *pooling.output_size, x.shape[3])
    out = _empty(x, shape, x.dtype, channels_last)
    pool_index = _empty(x, shape, pooling.index_dtype, channels_last)
    launch(
        kernels.max_pool2d_forward, (-(-out.numel() // BLOCK),), out, pool_index, x, out.numel(), *x.stride(), 0.0,
        RELU=relu, WIDE=needs_64_bits(x, out), **pool_constants(pooling, shape[3], channels_last),
    )  # fmt: skip
    return out, pool_index


def _backward(
    launch: Launcher, g: Tensor, pool_index: Tensor, pooling: Any, channels_last: bool, subgradient: float | None
) -> Tensor:
    channels = g.shape[1]
    grad_x = _empty(g, (g.shape[0], *pooling.input_size, channels), g.dtype, channels_last)
    launch(
        kernels.max_pool2d_backward, (-(-grad_x.numel() // BLOCK),), grad_x, g, pool_index, grad_x.numel(),
        *_nhwc_strides(g), *_nhwc_strides(pool_index), subgradient or 0.0,
        RELU=subgradient is not None, WIDE=needs_64_bits(grad_x, g, pool_index),
        **pool_constants(pooling, channels, channels_last),
    )  # fmt: skip
    return grad_x.permute(0, 3, 1, 2)


def _empty(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """A new (N, H, W, C): contiguous, or the view of a contiguous (N, C, H, W)."""
    if channels_last:
        return x.new_empty(shape, dtype=dtype)
    batch, height, width, channels = shape
    return x.new_empty((batch, channels, height, width), dtype=dtype).permute(0, 2, 3, 1)


def _nhwc_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of (N, C, H, W) in the order N, H, W, C."""
    return x.stride(0), x.stride(2), x.stride(3), x.stride(1)


def pool_constants(pooling: Any, channels: int, channels_last: bool) -> dict[str, Any]:
    """Constants of the kernels for a pooling whose results are in channels_last or contiguous memory."""
    windows = pooling.windows
    (kernel_height, kernel_width), (top, _, left, _) = windows.kernel_size, windows.padding
    return {
        "H": pooling.input_size[0], "W": pooling.input_size[1],
        "H_OUT": pooling.output_size[0], "W_OUT": pooling.output_size[1], "C": channels,
        "KH": kernel_height, "KW": kernel_width, "SH": windows.stride[0], "SW": windows.stride[1],
        "TOP": top, "LEFT": left, "DH": windows.dilation[0], "DW": windows.dilation[1],
        "CHANNELS_LAST": channels_last, "UNROLLED": kernel_height * kernel_width <= MAX_UNROLLED, "BLOCK": BLOCK,
    }  # fmt: skip
