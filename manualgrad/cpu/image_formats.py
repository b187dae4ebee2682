"""Copies of images from contiguous to channels_last memory, or back, as regions of a program and as functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, memory, team
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.kernel_groups import TRANSPOSE
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion
from manualgrad.cpu.tensor_checks import is_in_contiguous_format

BLOCK, STRIP = 8, 64  # as in kernels/transpose.py, which needs LLVM
NUMEL_PER_THREAD = 1 << 14  # that outweigh the start of a thread


def can_transpose(shape: Sequence[int]) -> bool:
    """Return True if the kernel can copy images (N, C, H, W) from one format to the other."""
    return min(shape[1], shape[2] * shape[3]) >= BLOCK


def to_channels_last(
    module: KernelModule, source: BufferRef, target: BufferRef, shape: Sequence[int], threads: int
) -> ParallelRegion:
    """Copy images (N, C, H, W) to (N, H, W, C)."""
    batch, channels, height, width = shape
    return _transpose(module, source, target, (batch, channels, height * width), threads)


def to_contiguous(
    module: KernelModule, source: BufferRef, target: BufferRef, shape: Sequence[int], threads: int
) -> ParallelRegion:
    """Copy images (N, H, W, C), whose shape is given as (N, C, H, W), to (N, C, H, W)."""
    batch, channels, height, width = shape
    return _transpose(module, source, target, (batch, height * width, channels), threads)


def _transpose(
    module: KernelModule, source: BufferRef, target: BufferRef, size: tuple[int, int, int], threads: int
) -> ParallelRegion:
    matrices, rows, columns = size
    num_tasks, share = split_work(matrices * -(-columns // STRIP), threads)
    call = module.call(
        "transpose", source=source, target=target, matrices=matrices, rows=rows, columns=columns, share=share
    )
    return ParallelRegion(num_tasks, [call])


def channels_last_copy(module: KernelModule, x: Tensor) -> Tensor:
    """Return x, float32 (N, C, H, W) of any strides, as contiguous (N, H, W, C); x itself if it is in this order."""
    batch, channels, height, width = x.shape
    if not (is_in_contiguous_format(x) and can_transpose(x.shape) and batch):
        return x.resolve_neg().permute(0, 2, 3, 1).contiguous()
    copy = memory.new(batch, height, width, channels)
    _copy_transposed(module, x, copy, (batch, channels, height * width))
    return copy


def contiguous_copy(module: KernelModule, x: Tensor) -> Tensor:
    """Return contiguous float32 images (N, H, W, C) as contiguous (N, C, H, W)."""
    batch, height, width, channels = x.shape
    if not (can_transpose((batch, channels, height, width)) and batch):
        return x.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    copy = memory.new(batch, channels, height, width)
    _copy_transposed(module, x, copy, (batch, height * width, channels))
    return copy


def _copy_transposed(module: KernelModule, source: Tensor, target: Tensor, size: tuple[int, int, int]) -> None:
    matrices, rows, columns = size
    max_tasks = max(1, min(torch.get_num_threads(), source.numel() // NUMEL_PER_THREAD))
    num_tasks, share = split_work(matrices * -(-columns // STRIP), max_tasks)
    team.run(
        instruction_set.load_group(module.instructions, TRANSPOSE), "transpose", num_tasks, source=source.data_ptr(),
        target=target.data_ptr(), matrices=matrices, rows=rows, columns=columns, share=share,
    )  # fmt: skip
