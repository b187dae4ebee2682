"""Convolution and its gradients as operators of ``torch.library``, which torch.compile does not trace.

As in ``pool_operators.py`` they stand in a compiled graph where kernels support the traced tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from manualgrad.dispatch import set_operator
from manualgrad.ops.conv2d import conv2d_forward_nchw, conv2d_grad_input_nchw, conv2d_grad_weight_oihw
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.windows import Windows

_GEOMETRY = "SymInt[] windows, SymInt[] input_size, int groups, bool flip_kernel, bool channels_last"


def conv2d_numbers(geometry: Conv2dGeometry) -> tuple[Any, ...]:
    """Arguments of an operator for ``geometry``; :func:`conv2d_geometry` is the inverse."""
    windows = geometry.windows
    numbers = [*windows.kernel_size, *windows.stride, *windows.padding, *windows.dilation]
    return numbers, list(geometry.input_size), geometry.groups, geometry.flip_kernel, geometry.channels_last


def conv2d_geometry(
    numbers: Sequence[int], size: Sequence[int], groups: int, flip_kernel: bool, channels_last: bool
) -> Conv2dGeometry:
    """The geometry of these arguments."""
    k1, k2, s1, s2, top, bottom, left, right, d1, d2 = numbers
    windows = Windows((k1, k2), (s1, s2), (top, bottom, left, right), (d1, d2))
    return Conv2dGeometry(windows, (size[0], size[1]), groups, flip_kernel, channels_last)


def _new(x: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


@custom_op("manualgrad::conv2d", mutates_args=(), schema=f"(Tensor x, Tensor w, Tensor? b, {_GEOMETRY}) -> Tensor")
def _conv2d(x: Tensor, w: Tensor, b: Tensor | None, numbers: list[int], size: list[int], groups: int,
            flip_kernel: bool, channels_last: bool) -> Tensor:  # fmt: skip
    geometry = conv2d_geometry(numbers, size, groups, flip_kernel, channels_last)
    return conv2d_forward_nchw(x, w, b, geometry)


@_conv2d.register_fake
def _(x: Tensor, w: Tensor, b: Tensor | None, numbers: list[int], size: list[int], groups: int,
      flip_kernel: bool, channels_last: bool) -> Tensor:  # fmt: skip
    windows = conv2d_geometry(numbers, size, groups, flip_kernel, channels_last).windows
    return _new(x, (x.shape[0], w.shape[0], *windows.output_size(size[0], size[1])), channels_last)


@custom_op("manualgrad::conv2d_grad_input", mutates_args=(), schema=f"(Tensor g, Tensor w, {_GEOMETRY}) -> Tensor")
def _grad_input(g: Tensor, w: Tensor, numbers: list[int], size: list[int], groups: int, flip_kernel: bool,
                channels_last: bool) -> Tensor:  # fmt: skip
    geometry = conv2d_geometry(numbers, size, groups, flip_kernel, channels_last)
    return conv2d_grad_input_nchw(g, w, geometry)


@_grad_input.register_fake
def _(g: Tensor, w: Tensor, numbers: list[int], size: list[int], groups: int, flip_kernel: bool,
      channels_last: bool) -> Tensor:  # fmt: skip
    return _new(g, (g.shape[0], w.shape[1] * groups, size[0], size[1]), channels_last)


@custom_op("manualgrad::conv2d_grad_weight", mutates_args=(), schema=f"(Tensor g, Tensor x, {_GEOMETRY}) -> Tensor")
def _grad_weight(g: Tensor, x: Tensor, numbers: list[int], size: list[int], groups: int, flip_kernel: bool,
                 channels_last: bool) -> Tensor:  # fmt: skip
    geometry = conv2d_geometry(numbers, size, groups, flip_kernel, channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return conv2d_grad_weight_oihw(g, x, geometry).contiguous(memory_format=memory_format)


@_grad_weight.register_fake
def _(g: Tensor, x: Tensor, numbers: list[int], size: list[int], groups: int, flip_kernel: bool,
      channels_last: bool) -> Tensor:  # fmt: skip
    return _new(g, (g.shape[1], x.shape[1] // groups, numbers[0], numbers[1]), channels_last)


set_operator("conv2d_forward_nchw", lambda x, w, b, geometry: _conv2d(x, w, b, *conv2d_numbers(geometry)))
set_operator("conv2d_grad_input_nchw", lambda g, w, geometry: _grad_input(g, w, *conv2d_numbers(geometry)))
set_operator("conv2d_grad_weight_oihw", lambda g, x, geometry: _grad_weight(g, x, *conv2d_numbers(geometry)))
