"""The kernels for convolutions with few channels in a group as functions of tensors: depthwise, and up to 8 channels.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``, and the tensors fit it (``cpu/conv2d.py``). The
kernels' groups have as many input as output channels, one of ``GROUP_SIZES``: images with others are padded with
channels of zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.grouped_conv_programs import GroupedConvProgram, program_for_images, program_for_weight
from manualgrad.cpu.grouped_conv_runs import GROUP_SIZES
from manualgrad.cpu.instruction_set import current_module
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import is_in_contiguous_format

MAX_PADDED_GROUP = 8  # larger groups are not padded with channels of zeros
MIN_LONGER_SIDE = 6  # of results with larger groups


def is_depthwise(geometry: Any, out_channels: int, group_channels: int) -> bool:
    """Return True if these kernels are the ones for a weight of (out_channels, group_channels, ...).

    They are for up to 8 channels of a group, and for as many as one or two vectors have. They make no tiles of
    several small images, as the kernels for any convolution do."""
    sizes = {group_channels, out_channels // geometry.groups}
    if geometry.groups == 1 or max(sizes) > GROUP_SIZES[-1]:
        return False
    if max(sizes) <= MAX_PADDED_GROUP:
        return True
    is_large = max(geometry.windows.output_size(*geometry.input_size)) >= MIN_LONGER_SIDE
    return len(sizes) == 1 and max(sizes) in (_lanes(), 2 * _lanes()) and is_large


def _lanes() -> int:
    module = current_module()
    return module.lanes if module else 0


def depthwise_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry."""
    out_size = geometry.windows.output_size(*geometry.input_size)
    return _images(module, x, w, b, w.shape[0], out_size, geometry, to_input=False)


def depthwise_grad_input(module: KernelModule, g: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry."""
    in_channels = geometry.groups * w.shape[1]
    return _images(module, g, w, None, in_channels, geometry.input_size, geometry, to_input=True)


def depthwise_grad_weight(module: KernelModule, g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """W(g, x): (C_out, C_in / groups, kH, kW), in the memory format of the geometry."""
    w_shape = g.shape[1], x.shape[1] // geometry.groups, *geometry.windows.kernel_size
    grad_w = memory.new_channels_last(*w_shape) if geometry.channels_last else memory.new(*w_shape)
    if not x.shape[0]:
        return grad_w.zero_()
    program = program_for_weight(
        module.instructions, x.shape[0], w_shape, grad_w.stride(), geometry, torch.get_num_threads(),
        (is_in_contiguous_format(g), is_in_contiguous_format(x)),
    )  # fmt: skip
    g, x = (_as_read(t, geometry, program, n) for n, t in enumerate((g, x)))
    program.run(g.data_ptr(), x.data_ptr(), grad_w.data_ptr())
    return grad_w


def _images(
    module: KernelModule, sources: Tensor, w: Tensor, b: Tensor | None, channels: int, size: tuple[int, int],
    geometry: Any, to_input: bool,
) -> Tensor:  # fmt: skip
    """Compute the targets, (N, channels, *size), from the sources, (N, C, H, W)."""
    w, b = w.resolve_neg(), None if b is None else to_contiguous(b)
    contiguous = is_in_contiguous_format(sources), not geometry.channels_last
    program = program_for_images(
        module.instructions, sources.shape[0], w.shape, w.stride(), geometry, torch.get_num_threads(), contiguous,
        b is not None, to_input,
    )  # fmt: skip
    sources, shape = _as_read(sources, geometry, program, 0), (sources.shape[0], geometry.groups * program.group_size)
    targets = memory.new(*shape, *size) if program.contiguous[1] else memory.new_channels_last(*shape, *size)
    if targets.numel():
        program.run(sources.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), targets.data_ptr())
    if shape[1] != channels:
        by_group = _split(targets, 1, geometry.groups)[:, :, : channels // geometry.groups]
        targets = memory.new_channels_last(shape[0], channels, *size).copy_(by_group.flatten(1, 2))
    if geometry.channels_last or program.contiguous[1]:
        return targets
    # clone, since contiguous() keeps strides that are out of order in dimensions of size 1
    return targets.clone(memory_format=torch.contiguous_format)


def _as_read(x: Tensor, geometry: Any, program: GroupedConvProgram, number: int) -> Tensor:
    """Return x, (N, C, H, W), as the program reads its images of this number."""
    return x if program.contiguous[number] else _pad_groups(x, geometry.groups, program.group_size)


def _pad_groups(x: Tensor, groups: int, group_size: int) -> Tensor:
    """Return x, (N, C, H, W), as contiguous (N, H, W, groups · group_size), zeros in channels that x lacks."""
    x = x.permute(0, 2, 3, 1)
    if x.shape[3] == groups * group_size:
        return to_contiguous(x)
    padded = memory.new(*x.shape[:3], groups * group_size, zeros=True)
    _split(padded, 3, groups)[..., : x.shape[3] // groups].copy_(_split(x, 3, groups))
    return padded


def _split(x: Tensor, dim: int, groups: int) -> Tensor:
    """View of x with (groups, channels of a group) in place of the channels, its dimension ``dim``."""
    by_group: Tensor = x.unflatten(dim, (groups, -1))  # type: ignore[no-untyped-call]
    return by_group
