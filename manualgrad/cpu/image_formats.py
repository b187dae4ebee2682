"""Regions of a program that copy images from contiguous to channels_last memory, or back."""

from __future__ import annotations

from collections.abc import Sequence

from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

BLOCK, STRIP = 8, 64  # as in kernels/transpose.py, which needs LLVM


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
