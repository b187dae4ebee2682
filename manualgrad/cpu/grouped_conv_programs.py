"""Programs of the kernels for convolutions with few channels in a group: division of work, and arguments.

A program is made once for each geometry, shape and number of threads. Its first region packs the weight, or its last
one unpacks the gradient. Images are (N, H, W, groups · G), where G, the *group size*, is one of ``GROUP_SIZES``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.grouped_conv_runs import (
    GROUP_SIZES,
    ROWS_PER_RUN,
    ROWS_PER_RUN_OF_WHOLE_GROUPS,
    WEIGHT_VECTORS,
    forward_runs,
    grad_input_runs,
    weight_tables,
)
from manualgrad.cpu.image_formats import can_transpose, to_channels_last, to_contiguous
from manualgrad.cpu.kernel_groups import GROUPED_CONV
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

MULTIPLICATIONS_PER_THREAD = 1 << 17  # that outweigh the start of a thread
WEIGHTS_PER_THREAD = 1 << 12
PIXELS_PER_SUM = 256  # of a sum for the weight's gradient: short sums round less, and the cache holds their rows
MAX_PARTS_NUMEL = 1 << 24  # floats of the weight gradients of all tasks together


@dataclass(frozen=True)
class GroupedConvProgram:
    """A program for a group size, the layout of its workspace, and the tables whose addresses are in it.

    ``contiguous`` is True for images that are contiguous; of forward they are the sources and the targets, of the
    weight's gradient g and x. Others are channels_last."""

    group_size: int
    program: Program
    layout: WorkspaceLayout
    tables: tuple[Tensor, Tensor]
    contiguous: tuple[bool, bool]

    def run(self, *addresses: int) -> None:
        """Run the program on tensors at ``addresses``, in the order of its names."""
        self.program.run_in_workspace(self.layout, addresses)


class _GroupedWeight:
    """A weight of ``shape`` (C_out, C_in / groups, kH, kW) with these strides, as the kernels have it."""

    def __init__(self, instructions: str, shape: Sequence[int], strides: Sequence[int], groups: int) -> None:
        self.groups, self.out_channels, self.in_channels = groups, shape[0] // groups, shape[1]
        self.kernel_height, self.kernel_width = shape[2:]
        self.strides = [4 * stride for stride in strides]
        self.group_size = next(size for size in GROUP_SIZES if size >= max(self.out_channels, self.in_channels))
        self.channels = groups * self.group_size
        self.module = instruction_set.load_group(instructions, f"{GROUPED_CONV}{self.group_size}")
        is_whole_vector = self.group_size >= self.module.lanes
        self.channels_at_once = self.module.lanes if is_whole_vector else 1
        self.rows_per_run = ROWS_PER_RUN_OF_WHOLE_GROUPS if is_whole_vector else ROWS_PER_RUN
        block = WEIGHT_VECTORS * self.module.lanes
        self.padded_channels = -(-self.channels // block) * block
        self.packed_numel = self.padded_channels * self.group_size * self.kernel_height * self.kernel_width

    def arguments(self, to_input: bool) -> dict[str, int]:
        """Arguments of the kernels that pack and unpack; ``to_input`` makes input channels the targets."""
        out_bytes, in_bytes, row_bytes, column_bytes = self.strides
        sides = (self.out_channels, out_bytes), (self.in_channels, in_bytes)
        (targets, target_bytes), (sources, source_bytes) = reversed(sides) if to_input else sides
        return {
            "groups": self.groups, "targets": targets, "sources": sources,
            "group_bytes": self.out_channels * out_bytes, "target_bytes": target_bytes, "source_bytes": source_bytes,
            "row_bytes": row_bytes, "column_bytes": column_bytes, "kernel_height": self.kernel_height,
            "kernel_width": self.kernel_width,
        }  # fmt: skip

    def split_channels(self, count: int, max_tasks: int) -> tuple[int, int]:
        """Divide ``count`` channels of targets among tasks, each with whole groups if a vector is one."""
        num_tasks, share = split_work(-(-count // self.channels_at_once), max_tasks)
        return num_tasks, share * self.channels_at_once

    def max_tasks(self, batch_size: int, output_size: tuple[int, int], threads: int) -> int:
        """Number of tasks that are worth a thread."""
        multiplications = batch_size * output_size[0] * output_size[1] * self.packed_numel
        return max(1, min(threads, multiplications // MULTIPLICATIONS_PER_THREAD))

    def transposes(self, channels: int, size: tuple[int, int], is_contiguous: bool) -> bool:
        """Return True if the program copies contiguous images of ``channels`` per group to or from channels_last."""
        shape = (0, self.channels, *size)
        return is_contiguous and channels == self.group_size and can_transpose(shape)

    def program(
        self, regions: Sequence[ParallelRegion], buffers: dict[str, int], names: tuple[str, ...],
        tables: tuple[Tensor, Tensor], contiguous: tuple[bool, bool],
    ) -> GroupedConvProgram:  # fmt: skip
        num_threads = min(torch.get_num_threads(), max(region.num_tasks for region in regions))
        layout = WorkspaceLayout(**buffers)
        program = Program(self.module, num_threads, regions, names, layout)
        return GroupedConvProgram(self.group_size, program, layout, tables, contiguous)


@lru_cache(maxsize=256)
def program_for_images(
    instructions: str, batch_size: int, shape: Sequence[int], strides: Sequence[int], geometry: Any, threads: int,
    contiguous: tuple[bool, bool], has_bias: bool, to_input: bool,
) -> GroupedConvProgram:  # fmt: skip
    """Program of C(x, w) + b, or of X(g, w) if ``to_input``, for the addresses source, weight, bias, target.

    ``shape`` and ``strides`` are those of the weight, ``contiguous`` tells the format of sources and targets."""
    weight = _GroupedWeight(instructions, shape, strides, geometry.groups)
    windows, input_size = geometry.windows, geometry.input_size
    output_size = windows.output_size(*input_size)
    make_runs = grad_input_runs if to_input else forward_runs
    rows, columns = (
        make_runs(
            input_size[n], output_size[n], windows.kernel_size[n], windows.stride[n], windows.padding[2 * n],
            windows.dilation[n], flip=geometry.flip_kernel, max_count=(weight.rows_per_run, None)[n],
        )
        for n in range(2)
    )  # fmt: skip
    source_size, target_size = (output_size, input_size) if to_input else (input_size, output_size)
    pack_tasks, pack_share = weight.split_channels(
        weight.padded_channels, min(threads, 1 + weight.packed_numel // WEIGHTS_PER_THREAD)
    )
    num_tasks, share = split_work(batch_size * len(rows.table), weight.max_tasks(batch_size, output_size, threads))
    pack = weight.module.call(
        "pack_grouped_weight", weight=BufferRef("weight"), bias=BufferRef("bias"), has_bias=has_bias,
        packed_weight=BufferRef("packed_weight"), packed_bias=BufferRef("packed_bias"),
        padded_channels=weight.padded_channels, share=pack_share, **weight.arguments(to_input),
    )  # fmt: skip
    sides = (weight.out_channels, weight.in_channels) if to_input else (weight.in_channels, weight.out_channels)
    contiguous = (
        weight.transposes(sides[0], source_size, contiguous[0]),
        weight.transposes(sides[1], target_size, contiguous[1]),
    )
    source, target = (
        BufferRef(f"{name}_channels_last" if is_copied else name)
        for name, is_copied in zip(("source", "target"), contiguous, strict=True)
    )
    compute = weight.module.call(
        "grouped_conv", source=source, target=target, weight=BufferRef("packed_weight"),
        bias=BufferRef("packed_bias"), row_runs=rows.table.data_ptr(), column_runs=columns.table.data_ptr(),
        num_row_runs=len(rows.table), num_column_runs=len(columns.table), row_tap_step=rows.tap_step,
        row_source_step=rows.source_step, column_tap_step=columns.tap_step, column_source_step=columns.source_step,
        batch_size=batch_size, share=share, source_height=source_size[0], source_width=source_size[1],
        target_height=target_size[0], target_width=target_size[1], channels=weight.channels,
        kernel_height=weight.kernel_height, kernel_width=weight.kernel_width,
    )  # fmt: skip
    regions = [ParallelRegion(pack_tasks, [pack]), ParallelRegion(num_tasks, [compute])]
    buffers = {"packed_weight": 4 * weight.packed_numel, "packed_bias": 4 * weight.padded_channels}
    if contiguous[0]:
        shape = batch_size, weight.channels, *source_size
        buffers["source_channels_last"] = 4 * math.prod(shape)
        regions.insert(0, to_channels_last(weight.module, BufferRef("source"), source, shape, threads))
    if contiguous[1]:
        shape = batch_size, weight.channels, *target_size
        buffers["target_channels_last"] = 4 * math.prod(shape)
        regions.append(to_contiguous(weight.module, target, BufferRef("target"), shape, threads))
    names = "source", "weight", "bias", "target"
    return weight.program(regions, buffers, names, (rows.table, columns.table), contiguous)


@lru_cache(maxsize=256)
def program_for_weight(
    instructions: str, batch_size: int, shape: Sequence[int], strides: Sequence[int], geometry: Any, threads: int,
    contiguous: tuple[bool, bool],
) -> GroupedConvProgram:  # fmt: skip
    """Program of W(g, x) for the addresses g, x, weight; ``shape`` and ``strides`` are those of the gradient.

    ``contiguous`` tells the format of g and x."""
    weight = _GroupedWeight(instructions, shape, strides, geometry.groups)
    windows, (height, width) = geometry.windows, geometry.input_size
    out_height, out_width = output_size = windows.output_size(height, width)
    tables = weight_tables(geometry, weight.group_size)
    row_blocks, rows_per_block = split_work(out_height, -(-out_height * out_width // PIXELS_PER_SUM))
    max_tasks = min(weight.max_tasks(batch_size, output_size, threads), MAX_PARTS_NUMEL // weight.packed_numel)
    num_tasks, share = split_work(batch_size * row_blocks, max(1, max_tasks))
    contiguous = (
        weight.transposes(weight.out_channels, output_size, contiguous[0]),
        weight.transposes(weight.in_channels, (height, width), contiguous[1]),
    )
    g, x = (
        BufferRef(f"{name}_channels_last" if is_copied else name)
        for name, is_copied in zip(("g", "x"), contiguous, strict=True)
    )
    compute = weight.module.call(
        "grouped_conv_grad_weight", grad_out=g, x=x, grad_weight_parts=BufferRef("parts"),
        part_numel=weight.packed_numel, row_taps=tables.row_taps.data_ptr(), segments=tables.segments.data_ptr(),
        **{f"segments_of_{n}": count for n, count in enumerate(tables.segments_of, start=1)},
        column_tap_step=-1 if geometry.flip_kernel else 1, row_stride=windows.stride[0],
        column_stride=windows.stride[1], column_dilation=windows.dilation[1], batch_size=batch_size,
        row_blocks=row_blocks, rows_per_block=rows_per_block, share=share, height=height, width=width,
        out_height=out_height, out_width=out_width, channels=weight.channels, kernel_height=weight.kernel_height,
        kernel_width=weight.kernel_width,
    )  # fmt: skip
    sum_tasks, sum_share = weight.split_channels(
        weight.groups * weight.out_channels, min(threads, 1 + num_tasks * weight.packed_numel // WEIGHTS_PER_THREAD)
    )
    add_up = weight.module.call(
        "sum_grouped_grads", weight=BufferRef("weight"), grad_weight_parts=BufferRef("parts"), num_parts=num_tasks,
        part_bytes=4 * weight.packed_numel, share=sum_share, **weight.arguments(to_input=False),
    )  # fmt: skip
    regions = [ParallelRegion(num_tasks, [compute]), ParallelRegion(sum_tasks, [add_up])]
    buffers = {"parts": 4 * num_tasks * weight.packed_numel}
    for source, size, is_copied in ((g, output_size, contiguous[0]), (x, (height, width), contiguous[1])):
        if is_copied:
            shape = batch_size, weight.channels, *size
            buffers[source.name] = 4 * math.prod(shape)
            original = BufferRef(source.name.removesuffix("_channels_last"))
            regions.insert(0, to_channels_last(weight.module, original, source, shape, threads))
    return weight.program(regions, buffers, ("g", "x", "weight"), (tables.row_taps, tables.segments), contiguous)
