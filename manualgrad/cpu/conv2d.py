"""The kernels for a general convolution as functions of tensors.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``. A function ``unsupported_...`` returns the reason
why the kernel does not compute its arguments, "" if it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import conv2d_programs as programs
from manualgrad.cpu import depthwise, instruction_set, memory
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.depthwise import is_depthwise
from manualgrad.cpu.jit import CONV2D, KernelModule
from manualgrad.cpu.tensor_checks import storage_covers, unsupported_tensor


def unsupported_conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    fits = _is_input(geometry, x, w.shape[1]) and _is_weight(geometry, w) and (b is None or b.shape == w.shape[:1])
    return _unsupported(geometry, fits, x, w, b)


def conv2d_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_forward(module, x, w, b, geometry)
    x, w, b = _images(x, geometry), w.resolve_neg(), None if b is None else to_contiguous(b)
    rows, columns = geometry.windows.output_size(*geometry.input_size)
    out = memory.new_channels_last(x.shape[0], w.shape[0], rows, columns)
    multiplications = out.numel() * w[0].numel()
    program = programs.forward_program(
        _module_of(module.instructions), tuple(x.shape), tuple(w.shape), w.stride(), b is not None, geometry,
        programs.num_threads_for(multiplications),
    )  # fmt: skip
    if out.numel():
        program.run(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())
    return _in_format_of(geometry, out)


def unsupported_conv2d_grad_input(g: Tensor, w: Tensor, geometry: Any) -> str:
    return _unsupported(geometry, _is_output(geometry, g, w.shape[0]) and _is_weight(geometry, w), g, w)


def conv2d_grad_input(module: KernelModule, g: Tensor, w: Tensor, geometry: Any) -> Tensor | None:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry. None if a weight is not finite: the kernel
    multiplies weights of windows at the border with zeros, which the formula does not."""
    if is_depthwise(geometry, w.shape[0], w.shape[1]):
        return depthwise.depthwise_grad_input(module, g, w, geometry)
    g, w = to_contiguous(g, torch.channels_last).permute(0, 2, 3, 1), w.resolve_neg()
    program, is_partial = programs.grad_input_program(
        _module_of(module.instructions), tuple(g.shape), tuple(w.shape), w.stride(), geometry,
        programs.num_threads_for(g.numel() * w[0].numel()),
    )  # fmt: skip
    channels = w.shape[1] * geometry.groups
    grad_x = memory.new_channels_last(g.shape[0], channels, *geometry.input_size, zeros=is_partial)
    if grad_x.numel():
        workspace = program.run(g.data_ptr(), w.data_ptr(), 0, grad_x.data_ptr())
        if not program.has_finite_weights(workspace):
            return None
    return _in_format_of(geometry, grad_x)


def unsupported_conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> str:
    fits = _is_input(geometry, x, x.shape[1] // geometry.groups) and _is_output(geometry, g, g.shape[1])
    return _unsupported(geometry, fits and g.shape[0] == x.shape[0], g, x)


def conv2d_grad_weight(module: KernelModule, g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """W(g, x): (C_out, C_in / groups, kH, kW), in the memory format of the geometry."""
    if is_depthwise(geometry, g.shape[1], x.shape[1] // geometry.groups):
        return depthwise.depthwise_grad_weight(module, g, x, geometry)
    w_shape = g.shape[1], x.shape[1] // geometry.groups, *geometry.windows.kernel_size
    grad_w = memory.new_channels_last(*w_shape) if geometry.channels_last else memory.new(*w_shape)
    g, x = to_contiguous(g, torch.channels_last), _images(x, geometry, programs.TILE_ROWS)
    if not x.shape[0]:
        return grad_w.zero_()
    program = programs.grad_weight_program(
        _module_of(module.instructions), tuple(x.shape), w_shape, grad_w.stride(), geometry,
        programs.num_threads_for(g.numel() * grad_w[0].numel()),
    )  # fmt: skip
    program.run(x.data_ptr(), g.data_ptr(), grad_w.data_ptr())
    return grad_w


def _unsupported(geometry: Any, fits: bool, *tensors: Tensor | None) -> str:
    for x in tensors:
        if x is not None:
            if reason := unsupported_tensor(x):
                return reason
            if not storage_covers(x):
                return "the storage of a tensor is too small"
    return "" if fits else "the geometry is not that of the tensors"


def _is_input(geometry: Any, x: Tensor, group_channels: int) -> bool:
    return x.shape[1:] == (group_channels * geometry.groups, *geometry.input_size)


def _is_weight(geometry: Any, w: Tensor) -> bool:
    return w.shape[2:] == geometry.windows.kernel_size and w.shape[0] % geometry.groups == 0


def _is_output(geometry: Any, g: Tensor, channels: int) -> bool:
    size = geometry.windows.output_size(*geometry.input_size)
    return g.shape[1:] == (channels, *size) and channels % geometry.groups == 0


@cache
def _module_of(instructions: str) -> Callable[[], KernelModule]:
    return lambda: instruction_set.load_group(instructions, CONV2D)


def _images(x: Tensor, geometry: Any, tile_rows: int = 0) -> Tensor:
    """Return x as contiguous (N, H, W, C_in), padded left and right if kernel rows are read as one run.

    With ``tile_rows`` there is memory for as many floats behind it if a run is shorter."""
    x = to_contiguous(x, torch.channels_last).permute(0, 2, 3, 1)
    (batch, height, width, channels), (_, _, left, right) = x.shape, geometry.windows.padding
    merges = programs.merges_columns(channels, geometry)
    run = channels // geometry.groups * (geometry.windows.kernel_size[1] if merges else 1)
    slack = tile_rows if run < tile_rows else 0
    left, right = (left, right) if merges else (0, 0)
    if not (left or right or slack):
        return x
    shape = batch, height, width + left + right, channels
    numel = math.prod(shape)
    padded = memory.new(numel + slack, zeros=True)[:numel].view(shape)
    padded[:, :, left : left + width].copy_(x)
    return padded


def _in_format_of(geometry: Any, x: Tensor) -> Tensor:
    # clone, since contiguous() keeps strides that are out of order in dimensions of size 1
    return x if geometry.channels_last else x.clone(memory_format=torch.contiguous_format)
