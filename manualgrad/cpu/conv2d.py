"""The kernels for a general convolution as functions of tensors.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``. A function ``unsupported_...`` returns the reason
why the kernel does not compute its arguments, "" if it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import conv2d_programs as programs
from manualgrad.cpu import depthwise, memory
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.depthwise import is_depthwise
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import is_in_contiguous_format, unsupported_tensor, unsupported_tensors


def unsupported_conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    return _unsupported(_fits_forward, geometry, (x.shape, w.shape, None if b is None else b.shape), x, w, b)


def conv2d_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_forward(module, x, w, b, geometry)
    return _forward(module, x, w, b, geometry, False)


def unsupported_conv_relu_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return "the kernels for small groups have no ReLU"
    return unsupported_conv2d_forward(x, w, b, geometry)


def conv_relu_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """R(C(x, w) + b): (N, C_out, H_out, W_out), in the memory format of the geometry."""
    return _forward(module, x, w, b, geometry, True)


def _forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, has_relu: bool) -> Tensor:
    w, b = w.resolve_neg(), None if b is None else to_contiguous(b)
    program = programs.forward_program(
        module.instructions, x.shape, w.shape, w.stride(), b is not None, geometry,
        (is_in_contiguous_format(x), not geometry.channels_last), torch.get_num_threads(), has_relu,
    )  # fmt: skip
    x, out = _images(x, program), _new_result(program)
    if x.shape[0]:
        program.run(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())
    return _in_format_of(geometry, program, out)


def unsupported_conv2d_grad_input(g: Tensor, w: Tensor, geometry: Any) -> str:
    return _unsupported(_fits_grad_input, geometry, (g.shape, w.shape), g, w)


def conv2d_grad_input(module: KernelModule, g: Tensor, w: Tensor, geometry: Any) -> Tensor | None:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry. None if a weight is not finite: the kernel
    multiplies weights of windows at the border with zeros, which the formula does not."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_grad_input(module, g, w, geometry)
    w = w.resolve_neg()
    program = programs.grad_input_program(
        module.instructions, g.shape, w.shape, w.stride(), geometry,
        (is_in_contiguous_format(g), not geometry.channels_last), torch.get_num_threads(),
    )  # fmt: skip
    g, grad_x = _images(g, program), _new_result(program)
    if g.shape[0] and not program.run_and_check(g.data_ptr(), w.data_ptr(), 0, grad_x.data_ptr()):
        return None
    return _in_format_of(geometry, program, grad_x)


def unsupported_conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> str:
    return _unsupported(_fits_grad_weight, geometry, (g.shape, x.shape), g, x)


def conv2d_grad_weight(module: KernelModule, g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """W(g, x): (C_out, C_in / groups, kH, kW), in the memory format of the geometry."""
    if is_depthwise(geometry, g.shape[1], x.shape[1] // geometry.groups):
        return depthwise.depthwise_grad_weight(module, g, x, geometry)
    w_shape = g.shape[1], x.shape[1] // geometry.groups, *geometry.windows.kernel_size
    grad_w = memory.new_channels_last(*w_shape) if geometry.channels_last else memory.new(*w_shape)
    if not x.shape[0]:
        return grad_w.zero_()
    program = programs.grad_weight_program(
        module.instructions, x.shape, w_shape, grad_w.stride(), geometry,
        (is_in_contiguous_format(x), is_in_contiguous_format(g)), torch.get_num_threads(),
    )  # fmt: skip
    x, g = _images(x, program), g if program.contiguous[1] else to_contiguous(g, torch.channels_last)
    program.run(x.data_ptr(), g.data_ptr(), grad_w.data_ptr())
    return grad_w


def unsupported_conv2d_backward(g: Tensor, x: Tensor, w: Tensor, _: bool, geometry: Any) -> str:
    return _unsupported(_fits_backward, geometry, (g.shape, x.shape, w.shape), g, x, w)


def conv2d_backward(
    module: KernelModule, g: Tensor, x: Tensor, w: Tensor, needs_bias: bool, geometry: Any
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """X(g, w), W(g, x) and the gradient of the bias, or None for it. None at all as in :func:`conv2d_grad_input`."""
    grad_x = conv2d_grad_input(module, g, w, geometry)
    if grad_x is None:
        return None
    return grad_x, conv2d_grad_weight(module, g, x, geometry), g.sum((0, 2, 3)) if needs_bias else None


def _unsupported(fits: Any, geometry: Any, shapes: tuple[Any, ...], *tensors: Tensor | None) -> str:
    """``fits`` tells if the geometry is that of ``shapes``; it is a function with a cache."""
    if torch.compiler.is_compiling():
        if reason := unsupported_tensors(*tensors):
            return reason
        fits = fits.__wrapped__  # sizes may be symbols
    else:
        for x in tensors:
            if x is not None and (reason := unsupported_tensor(x, covered=True)):
                return reason
    return "" if fits(geometry, *shapes) else "the geometry is not that of the tensors"


@lru_cache(maxsize=512)
def _fits_forward(
    geometry: Any, x_shape: Sequence[int], w_shape: Sequence[int], b_shape: Sequence[int] | None
) -> bool:
    fits = _is_input(geometry, x_shape, w_shape[1]) and _is_weight(geometry, w_shape)
    return fits and (b_shape is None or b_shape == (w_shape[0],))


@lru_cache(maxsize=512)
def _fits_grad_input(geometry: Any, g_shape: Sequence[int], w_shape: Sequence[int]) -> bool:
    return _is_output(geometry, g_shape, w_shape[0]) and _is_weight(geometry, w_shape)


@lru_cache(maxsize=512)
def _fits_backward(geometry: Any, g_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int]) -> bool:
    return _fits_grad_input(geometry, g_shape, w_shape) and _fits_grad_weight(geometry, g_shape, x_shape)


@lru_cache(maxsize=512)
def _fits_grad_weight(geometry: Any, g_shape: Sequence[int], x_shape: Sequence[int]) -> bool:
    fits = _is_input(geometry, x_shape, x_shape[1] // geometry.groups) and _is_output(geometry, g_shape, g_shape[1])
    return fits and g_shape[0] == x_shape[0]


def _is_input(geometry: Any, shape: Sequence[int], group_channels: int) -> bool:
    return tuple(shape[1:]) == (group_channels * geometry.groups, *geometry.input_size)


def _is_weight(geometry: Any, shape: Sequence[int]) -> bool:
    return bool(tuple(shape[2:]) == geometry.windows.kernel_size and shape[0] % geometry.groups == 0)


def _is_output(geometry: Any, shape: Sequence[int], channels: int) -> bool:
    size = geometry.windows.output_size(*geometry.input_size)
    return tuple(shape[1:]) == (channels, *size) and channels % geometry.groups == 0


def _images(x: Tensor, program: programs.ConvProgram) -> Tensor:
    """Return the images x as ``program`` reads them."""
    margin = program.margin
    if program.contiguous[0]:
        return x
    if not any(margin):
        return to_contiguous(x, torch.channels_last)
    (left, right, slack), (batch, channels, height, width) = margin, x.shape
    shape = batch, height, width + left + right, channels
    numel = math.prod(shape)
    padded = memory.new(numel + slack, zeros=True)[:numel].view(shape).permute(0, 3, 1, 2)
    padded.narrow(3, left, width).copy_(x)
    return padded


def _new_result(program: programs.ConvProgram) -> Tensor:
    if program.contiguous[1]:
        return memory.new(*program.result_shape)
    return memory.new_channels_last(*program.result_shape, zeros=program.is_partial)


def _in_format_of(geometry: Any, program: programs.ConvProgram, x: Tensor) -> Tensor:
    if geometry.channels_last or program.contiguous[1]:
        return x
    # clone, since contiguous() keeps strides that are out of order in dimensions of size 1
    return x.clone(memory_format=torch.contiguous_format)
