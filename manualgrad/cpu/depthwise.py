"""The kernels for convolutions with few channels in a group as functions of tensors: depthwise, and up to 8 channels.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``. A function ``unsupported_...`` returns the reason
why the kernel does not compute its arguments, "" if it does. Groups of other sizes than the kernels', and those with
more output than input channels, are padded with channels of zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, memory, team
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.grouped_conv_sizes import GROUP_SIZES, WEIGHT_VECTORS, grad_weight_sizes, sizes_of
from manualgrad.cpu.jit import GROUPED_CONV, KernelModule
from manualgrad.cpu.tensor_checks import storage_covers, unsupported_tensor

def is_depthwise(geometry: Any, out_channels: int, group_channels: int) -> bool:
    """Return True if these kernels are the ones for a weight of (out_channels, group_channels, ...)."""
    return geometry.groups > 1 and max(group_channels, out_channels // geometry.groups) <= GROUP_SIZES[-1]


def unsupported_depthwise_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    return _unsupported(geometry, w.shape[0], w.shape[1], x, w, b)


def depthwise_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry."""
    groups, (out_channels, group_channels) = geometry.groups, w.shape[:2]
    size = _group_size(out_channels // groups, group_channels)
    weight = _pack(_pad_weight(w, groups, size).flatten(0, 1), module.lanes)
    bias = memory.new(weight.shape[0] * weight.shape[4], zeros=True)
    if b is not None:
        b = b.resolve_neg().unflatten(0, (groups, -1))
        bias[: groups * size].view(groups, size)[:, : b.shape[1]].copy_(b)
    sources = _pad_groups(x, groups, size)
    return _run(module, sources, weight, bias, out_channels, geometry, size, to_input=False)


def unsupported_depthwise_grad_input(g: Tensor, w: Tensor, geometry: Any) -> str:
    return _unsupported(geometry, w.shape[0], w.shape[1], g, w)


def depthwise_grad_input(module: KernelModule, g: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry."""
    groups, (out_channels, group_channels) = geometry.groups, w.shape[:2]
    size = _group_size(out_channels // groups, group_channels)
    weight = _pack(_pad_weight(w, groups, size).transpose(1, 2).flatten(0, 1), module.lanes)
    bias = memory.new(weight.shape[0] * weight.shape[4], zeros=True)
    sources = _pad_groups(g, groups, size)
    return _run(module, sources, weight, bias, groups * group_channels, geometry, size, to_input=True)


def unsupported_depthwise_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> str:
    return _unsupported(geometry, g.shape[1], x.shape[1] // geometry.groups, g, x)


def depthwise_grad_weight(module: KernelModule, g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """W(g, x): (C_out, C_in / groups, kH, kW), in the memory format of the geometry."""
    groups, kernel_size = geometry.groups, geometry.windows.kernel_size
    w_shape = g.shape[1], x.shape[1] // groups, *kernel_size
    grad_w = memory.new_channels_last(*w_shape) if geometry.channels_last else memory.new(*w_shape)
    if not x.shape[0]:
        return grad_w.zero_()
    size = _group_size(g.shape[1] // groups, w_shape[1])
    g, x = _pad_groups(g, groups, size), _pad_groups(x, groups, size)
    s = grad_weight_sizes(*g.shape[::3], geometry, size, torch.get_num_threads())
    block_channels = WEIGHT_VECTORS * module.lanes
    blocks = -(-groups * size // block_channels)
    parts = memory.new(s.num_tasks, blocks, *kernel_size, size, block_channels, zeros=True)
    team.run(
        _module_of(module, size), "grouped_conv_grad_weight", s.num_tasks, grad_out=g.data_ptr(), x=x.data_ptr(),
        grad_weight_parts=parts.data_ptr(), part_bytes=4 * parts[0].numel(), **s.arguments,
    )  # fmt: skip
    total = parts[0] if s.num_tasks == 1 else parts.sum(0)
    by_group = total.permute(0, 4, 3, 1, 2).flatten(0, 1)[: groups * size].unflatten(0, (groups, size))
    return grad_w.copy_(by_group[:, : w_shape[0] // groups, : w_shape[1]].flatten(0, 1))


# ------------------------------------------------------------------------------------------ checks and layouts


def _unsupported(geometry: Any, out_channels: int, group_channels: int, *tensors: Tensor | None) -> str:
    if not is_depthwise(geometry, out_channels, group_channels):
        return "a group has many channels"
    for x in tensors:
        if x is not None:
            if reason := unsupported_tensor(x):
                return reason
            if not storage_covers(x):
                return "the storage of a tensor is too small"
    return ""


def _group_size(*channels: int) -> int:
    """Channels of the kernel's group for groups with these numbers of channels."""
    return next(size for size in GROUP_SIZES if size >= max(channels))


def _module_of(module: KernelModule, size: int) -> KernelModule:
    return instruction_set.load_group(module.instructions, f"{GROUPED_CONV}{size}")


def _pad_groups(x: Tensor, groups: int, size: int) -> Tensor:
    """Return x, (N, C, H, W), as contiguous (N, H, W, groups · size), zeros in channels that x does not have."""
    x = x.resolve_neg().permute(0, 2, 3, 1)
    if x.shape[3] == groups * size:
        return to_contiguous(x)
    padded = memory.new(*x.shape[:3], groups * size, zeros=True)
    padded.unflatten(3, (groups, size))[..., : x.shape[3] // groups].copy_(x.unflatten(3, (groups, -1)))
    return padded


def _pad_weight(w: Tensor, groups: int, size: int) -> Tensor:
    """Return w, (C_out, C_in / groups, kH, kW), as (groups, size, size, kH, kW): output before input channels."""
    by_group = w.resolve_neg().unflatten(0, (groups, -1))
    if by_group.shape[1:3] == (size, size):
        return by_group
    padded = by_group.new_zeros(groups, size, size, *w.shape[2:])
    padded[:, : by_group.shape[1], : by_group.shape[2]] = by_group
    return padded


def _pack(w: Tensor, lanes: int) -> Tensor:
    """Return w, (C, G, kH, kW), as (blocks of C, kH, kW, G, channels of a block), zeros after the last channel."""
    block = WEIGHT_VECTORS * lanes
    if rest := w.shape[0] % block:
        w = torch.constant_pad_nd(w, (0, 0, 0, 0, 0, 0, 0, block - rest))
    by_block = w.unflatten(0, (-1, block)).permute(0, 3, 4, 2, 1)
    return memory.new(*by_block.shape).copy_(by_block)


# ------------------------------------------------------------------------------------------------ kernel calls


def _run(
    module: KernelModule, sources: Tensor, weight: Tensor, bias: Tensor, out_channels: int, geometry: Any, size: int,
    to_input: bool,
) -> Tensor:  # fmt: skip
    """Compute the targets, (N, out_channels, H, W), from the sources, (N, H, W, C)."""
    batch_size, channels = sources.shape[0], sources.shape[3]
    out_size = geometry.input_size if to_input else geometry.windows.output_size(*geometry.input_size)
    targets = memory.new_channels_last(batch_size, channels, *out_size)
    if batch_size:
        s = sizes_of(batch_size, channels, geometry, size, to_input, torch.get_num_threads())
        team.run(
            _module_of(module, size), "grouped_conv", s.num_tasks, source=sources.data_ptr(), target=targets.data_ptr(),
            weight=weight.data_ptr(), bias=bias.data_ptr(), **s.arguments,
        )  # fmt: skip
    if channels != out_channels:
        by_group = targets.unflatten(1, (geometry.groups, size))[:, :, : out_channels // geometry.groups]
        targets = memory.new_channels_last(batch_size, out_channels, *out_size).copy_(by_group.flatten(1, 2))
    # clone, since contiguous() keeps strides that are out of order in dimensions of size 1
    return targets if geometry.channels_last else targets.clone(memory_format=torch.contiguous_format)
