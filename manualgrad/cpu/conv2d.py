"""The kernels for a general convolution as functions of tensors.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``. A function ``unsupported_...`` returns the reason
why the kernel does not compute its arguments, "" if it does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import conv2d_programs as programs
from manualgrad.cpu import depthwise, memory
from manualgrad.cpu.conv2d_checks import (
    fits_backward,
    fits_forward,
    fits_grad_input,
    fits_grad_weight,
    unsupported,
)
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.depthwise import is_depthwise
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.pointwise import is_pointwise, pointwise_forward, pointwise_grad_input, pointwise_grad_weight
from manualgrad.cpu.tensor_checks import is_in_contiguous_format


def unsupported_conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    return unsupported(fits_forward, geometry, *((x, w) if b is None else (x, w, b)))


def conv2d_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor | None:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry. None as in
    :func:`conv2d_grad_input`."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_forward(module, x, w, b, geometry)
    return _forward(module, x, w, b, geometry, False)


def unsupported_conv_relu_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return "the kernels for small groups have no ReLU"
    return unsupported_conv2d_forward(x, w, b, geometry)


def conv_relu_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor | None:
    """R(C(x, w) + b): (N, C_out, H_out, W_out), in the memory format of the geometry. None as in
    :func:`conv2d_grad_input`."""
    return _forward(module, x, w, b, geometry, True)


def _forward(
    module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, has_relu: bool
) -> Tensor | None:
    if is_pointwise(module, geometry, x, w.shape[0], not geometry.channels_last):
        out = pointwise_forward(x, w, b, geometry)
        return out.clamp_(min=0) if has_relu else out  # eq. (9)
    w, b = _dense(w), None if b is None else to_contiguous(b)
    program = programs.forward_program(
        module.instructions, x.shape, w.shape, w.stride(), b is not None, geometry,
        (is_in_contiguous_format(x), not geometry.channels_last), torch.get_num_threads(), has_relu,
    )  # fmt: skip
    reads, writes = program.contiguous
    x, out = x if reads else _images(x, program), _new_result(program, writes)
    if x.shape[0] and not program.run(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr()):
        return None
    return out if geometry.channels_last or writes else _clone_contiguous(out)


def unsupported_conv2d_grad_input(g: Tensor, w: Tensor, geometry: Any) -> str:
    return unsupported(fits_grad_input, geometry, g, w)


def conv2d_grad_input(module: KernelModule, g: Tensor, w: Tensor, geometry: Any) -> Tensor | None:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry. None if a weight is not finite: the kernel
    multiplies some weights of windows at the border with zeros, and leaves out others."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_grad_input(module, g, w, geometry)
    if is_pointwise(module, geometry, g, w.shape[1], not geometry.channels_last):
        return pointwise_grad_input(g, w, geometry)
    w = _dense(w)
    program = programs.grad_input_program(
        module.instructions, g.shape, w.shape, w.stride(), geometry,
        (is_in_contiguous_format(g), not geometry.channels_last), torch.get_num_threads(),
    )  # fmt: skip
    reads, writes = program.contiguous
    g, grad_x = g if reads else _images(g, program), _new_result(program, writes)
    if g.shape[0] and not program.run(g.data_ptr(), w.data_ptr(), grad_x.data_ptr()):
        return None
    return grad_x if geometry.channels_last or writes else _clone_contiguous(grad_x)


def unsupported_conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> str:
    return unsupported(fits_grad_weight, geometry, g, x)


def conv2d_grad_weight(module: KernelModule, g: Tensor, x: Tensor, geometry: Any) -> Tensor | None:
    """W(g, x): (C_out, C_in / groups, kH, kW), in the memory format of the geometry. None if a sum is not finite:
    the kernel leaves out pixels outside the image, which the formula multiplies as zeros."""
    grads = _grad_weight(module, g, x, geometry, False)
    return None if grads is None else grads[0]


def conv2d_grad_weight_and_bias(
    module: KernelModule, g: Tensor, x: Tensor, geometry: Any
) -> tuple[Tensor, Tensor | None] | None:
    """W(g, x) and the gradient of the bias, (C_out). None as in :func:`conv2d_grad_weight`."""
    return _grad_weight(module, g, x, geometry, True)


def _grad_weight(
    module: KernelModule, g: Tensor, x: Tensor, geometry: Any, needs_bias: bool
) -> tuple[Tensor, Tensor | None] | None:
    if is_depthwise(geometry, g.shape[1], x.shape[1] // geometry.groups):
        return depthwise.depthwise_grad_weight(module, g, x, geometry), _grad_bias(g, needs_bias)
    w_shape = g.shape[1], x.shape[1] // geometry.groups, *geometry.windows.kernel_size
    if x.shape[0] and is_pointwise(module, geometry, x, g.shape[1], is_in_contiguous_format(g)):
        return pointwise_grad_weight(g, x, geometry), _grad_bias(g, needs_bias)
    grad_w = memory.new_channels_last(*w_shape) if geometry.channels_last else memory.new(*w_shape)
    if not x.shape[0]:
        return grad_w.zero_(), _grad_bias(g, needs_bias)
    grad_b = memory.new(g.shape[1]) if needs_bias else None
    program = programs.grad_weight_program(
        module.instructions, x.shape, w_shape, grad_w.stride(), geometry,
        (is_in_contiguous_format(x), is_in_contiguous_format(g)), needs_bias, torch.get_num_threads(),
    )  # fmt: skip
    x = x if program.contiguous[0] else _images(x, program)
    g = g if program.contiguous[1] else to_contiguous(g, torch.channels_last)
    is_right = program.run(x.data_ptr(), g.data_ptr(), grad_w.data_ptr(), _address(grad_b))
    return (grad_w, grad_b) if is_right else None


def unsupported_conv2d_backward(g: Tensor, x: Tensor, w: Tensor, _: bool, geometry: Any) -> str:
    return unsupported(fits_backward, geometry, g, x, w)


def conv2d_backward(
    module: KernelModule, g: Tensor, x: Tensor, w: Tensor, needs_bias: bool, geometry: Any
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """X(g, w), W(g, x) and the gradient of the bias, or None for it. None at all as in :func:`conv2d_grad_input`
    and :func:`conv2d_grad_weight`."""
    if (
        geometry.windows.stride != (1, 1)
        or is_depthwise(geometry, w.shape[0], w.shape[1])
        or is_pointwise(module, geometry, g, w.shape[1], not geometry.channels_last)
    ):
        # with a stride one workspace for both would be much larger, since the input's gradient has several grids
        of_input = conv2d_grad_input(module, g, w, geometry)
        of_weight = None if of_input is None else _grad_weight(module, g, x, geometry, needs_bias)
        return None if of_input is None or of_weight is None else (of_input, *of_weight)
    w, channels_last = _dense(w), geometry.channels_last
    grad_w = memory.new_channels_last(*w.shape) if channels_last else memory.new(*w.shape)
    program = programs.backward_program(
        module.instructions, x.shape, w.shape, w.stride(), grad_w.stride(), geometry,
        (is_in_contiguous_format(g), is_in_contiguous_format(x), not channels_last), needs_bias,
        torch.get_num_threads(),
    )  # fmt: skip
    g_read = g if program.contiguous[0] else to_contiguous(g, torch.channels_last)
    x = x if program.contiguous[1] else _images(x, program)
    grad_x = _new_result(program, program.contiguous[2])
    grad_b = memory.new(g.shape[1], zeros=not g.shape[0]) if needs_bias else None
    addresses = [_address(t) for t in (g_read, x, w, grad_x, grad_w, grad_b)]
    if not g.shape[0]:
        grad_w.zero_()
    elif not program.run(*addresses):
        return None
    if not (channels_last or program.contiguous[2]):
        grad_x = _clone_contiguous(grad_x)
    return grad_x, grad_w, grad_b


def _grad_bias(g: Tensor, is_needed: bool) -> Tensor | None:
    return g.sum((0, 2, 3)) if is_needed else None


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _dense(w: Tensor) -> Tensor:
    """Return a weight without gaps in memory, and without a negative bit."""
    is_dense = w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last)
    return w.resolve_neg() if is_dense else to_contiguous(w)


def _images(x: Tensor, program: programs.ConvProgram) -> Tensor:
    """Return the images x as ``program`` reads them, unless it reads contiguous ones."""
    if not program.has_margin:
        return to_contiguous(x, torch.channels_last)
    (left, right, slack), (batch, channels, height, width) = program.margin, x.shape
    shape = batch, height, width + left + right, channels
    numel = math.prod(shape)
    padded = memory.new(numel + slack, zeros=True)[:numel].view(shape).permute(0, 3, 1, 2)
    padded.narrow(3, left, width).copy_(x)
    return padded


def _new_result(program: programs.ConvProgram, contiguous: bool) -> Tensor:
    if contiguous:
        return memory.new(*program.result_shape)
    return memory.new_channels_last(*program.result_shape, zeros=program.is_partial)


def _clone_contiguous(x: Tensor) -> Tensor:
    # clone, since contiguous() keeps strides that are out of order in dimensions of size 1
    return x.clone(memory_format=torch.contiguous_format)
