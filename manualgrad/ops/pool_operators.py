"""Max-pooling, alone and after a ReLU, as operators of ``torch.library``, which torch.compile does not trace.

They stand in a compiled graph where kernels support the traced tensors, as kernels for CUDA do; the operator
dispatches again when the graph runs. A ReLU alone, softmax and cross-entropy have none: the compiler fuses their
formulas with the operations around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from manualgrad.dispatch import set_operator
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.layout import from_nchw, in_memory_format, to_nchw
from manualgrad.ops.max_pool2d import max_pool2d_backward, max_pool2d_forward
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry
from manualgrad.ops.relu_pool import relu_pool_backward, relu_pool_forward
from manualgrad.ops.windows import Windows

_GEOMETRY = "SymInt[] windows, SymInt[] sizes, bool channels_last"
_RELU = "SymInt[] windows, SymInt[] sizes, float subgradient"


def pool_numbers(geometry: MaxPool2dGeometry) -> tuple[list[int], list[int]]:
    """Numbers of the windows, and of the input's and the output's size; :func:`pool_geometry` is the inverse."""
    windows = geometry.windows
    numbers = [*windows.kernel_size, *windows.stride, *windows.padding, *windows.dilation]
    return numbers, [*geometry.input_size, *geometry.output_size]


def pool_geometry(numbers: Sequence[int], sizes: Sequence[int], channels_last: bool) -> MaxPool2dGeometry:
    """The geometry of these numbers."""
    k1, k2, s1, s2, top, bottom, left, right, d1, d2 = numbers
    windows = Windows((k1, k2), (s1, s2), (top, bottom, left, right), (d1, d2))
    return MaxPool2dGeometry(windows, (sizes[0], sizes[1]), (sizes[2], sizes[3]), channels_last)


def _relu_geometry(numbers: Sequence[int], sizes: Sequence[int], subgradient: float) -> ConvReLUPoolGeometry:
    """Geometry for the formulas of ``relu_pool.py``, which do not look at the convolution: here it is 1x1."""
    pooling = pool_geometry(numbers, sizes, True)
    return ConvReLUPoolGeometry(Conv2dGeometry(Windows((1, 1)), pooling.input_size), pooling, subgradient)


def _new(x: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An (N, C, H, W) of this dtype, or of that of ``x``, in this memory format."""
    batch, channels, height, width = shape
    if not channels_last:
        return x.new_empty((batch, channels, height, width), dtype=dtype)
    return x.new_empty((batch, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


@custom_op("manualgrad::max_pool2d", mutates_args=(), schema=f"(Tensor x, {_GEOMETRY}) -> (Tensor, Tensor)")
def _pool(x: Tensor, numbers: list[int], sizes: list[int], channels_last: bool) -> tuple[Tensor, Tensor]:
    maximum, pool_index = max_pool2d_forward(x, pool_geometry(numbers, sizes, channels_last))
    maximum, pool_index = (
        from_nchw(in_memory_format(to_nchw(result), channels_last)) for result in (maximum, pool_index)
    )
    return maximum, pool_index  # in the memory format that the fake implementation announces


@_pool.register_fake
def _(x: Tensor, numbers: list[int], sizes: list[int], channels_last: bool) -> tuple[Tensor, Tensor]:
    geometry = pool_geometry(numbers, sizes, channels_last)
    shape = x.shape[0], x.shape[3], *geometry.output_size
    out, pool_index = (_new(x, shape, channels_last, dtype) for dtype in (x.dtype, geometry.index_dtype))
    return out.permute(0, 2, 3, 1), pool_index.permute(0, 2, 3, 1)


@custom_op(
    "manualgrad::max_pool2d_backward", mutates_args=(), schema=f"(Tensor g, Tensor pool_index, {_GEOMETRY}) -> Tensor"
)
def _pool_backward(
    g: Tensor, pool_index: Tensor, numbers: list[int], sizes: list[int], channels_last: bool
) -> Tensor:
    return max_pool2d_backward(g, pool_index, pool_geometry(numbers, sizes, channels_last))


@_pool_backward.register_fake
def _(g: Tensor, pool_index: Tensor, numbers: list[int], sizes: list[int], channels_last: bool) -> Tensor:
    return _new(g, (*g.shape[:2], *sizes[:2]), channels_last)


@custom_op("manualgrad::relu_pool", mutates_args=(), schema=f"(Tensor z, {_RELU}) -> (Tensor, Tensor)")
def _relu_pool(z: Tensor, numbers: list[int], sizes: list[int], subgradient: float) -> tuple[Tensor, Tensor]:
    return relu_pool_forward(z, _relu_geometry(numbers, sizes, subgradient))


@_relu_pool.register_fake
def _(z: Tensor, numbers: list[int], sizes: list[int], subgradient: float) -> tuple[Tensor, Tensor]:
    geometry = pool_geometry(numbers, sizes, True)
    out = z.new_empty(z.shape[0], *geometry.output_size, z.shape[3])
    return out, out.new_empty(out.shape, dtype=geometry.index_dtype)


@custom_op(
    "manualgrad::relu_pool_backward", mutates_args=(), schema=f"(Tensor g, Tensor pool_index, {_RELU}) -> Tensor"
)
def _relu_pool_backward(
    g: Tensor, pool_index: Tensor, numbers: list[int], sizes: list[int], subgradient: float
) -> Tensor:
    return relu_pool_backward(g, pool_index, _relu_geometry(numbers, sizes, subgradient))


@_relu_pool_backward.register_fake
def _(g: Tensor, pool_index: Tensor, numbers: list[int], sizes: list[int], subgradient: float) -> Tensor:
    return _new(g, (*g.shape[:2], *sizes[:2]), True)


set_operator("max_pool2d_forward", lambda x, geometry: _pool(x, *pool_numbers(geometry), geometry.channels_last))
set_operator(
    "max_pool2d_backward",
    lambda g, pool_index, geometry: _pool_backward(g, pool_index, *pool_numbers(geometry), geometry.channels_last),
)
set_operator(
    "relu_pool_forward",
    lambda z, geometry: _relu_pool(z, *pool_numbers(geometry.pooling), float(geometry.subgradient)),
)
set_operator(
    "relu_pool_backward",
    lambda g, pool_index, geometry: _relu_pool_backward(
        g, pool_index, *pool_numbers(geometry.pooling), float(geometry.subgradient)
    ),
)
