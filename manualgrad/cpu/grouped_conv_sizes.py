"""Sizes of the kernels for convolutions with few channels in a group, and the arguments that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.grouped_conv_runs import forward_runs, grad_input_runs, weight_tables

GROUP_SIZES = (1, 2, 4, 8)  # channels of a group, of the input and of the output
WEIGHT_VECTORS = 2  # vectors of channels in a block of packed weights
MULTIPLICATIONS_PER_THREAD = 1 << 17  # that outweigh the start of a thread
PIXELS_PER_SUM = 256  # of a sum for the weight's gradient: short sums round less, and the cache holds their rows
MAX_PARTS_NUMEL = 1 << 24  # floats of the weight gradients of all tasks together


@dataclass(frozen=True)
class GroupedSizes:
    """Number of tasks, the arguments that follow from the shapes, and the tables whose addresses are in them."""

    num_tasks: int
    arguments: dict[str, int]
    tables: tuple[Tensor, ...]


@lru_cache(maxsize=256)
def sizes_of(
    batch_size: int, channels: int, geometry: Any, group_size: int, to_input: bool, threads: int
) -> GroupedSizes:
    """Sizes of ``grouped_conv`` for ``channels`` of sources and targets; ``to_input`` computes X(g, w), not C(x, w)."""
    windows, input_size = geometry.windows, geometry.input_size
    output_size = windows.output_size(*input_size)
    make_runs = grad_input_runs if to_input else forward_runs
    rows, columns = (
        make_runs(
            input_size[n], output_size[n], windows.kernel_size[n], windows.stride[n], windows.padding[2 * n],
            windows.dilation[n], flip=geometry.flip_kernel, is_rows=n == 0,
        )
        for n in range(2)
    )  # fmt: skip
    source_size, target_size = (output_size, input_size) if to_input else (input_size, output_size)
    max_tasks = _max_tasks(batch_size * channels * group_size, geometry, threads)
    num_tasks, share = split_work(batch_size * len(rows.table), max_tasks)
    arguments = {
        "row_runs": rows.table.data_ptr(),
        "column_runs": columns.table.data_ptr(),
        "num_row_runs": len(rows.table),
        "num_column_runs": len(columns.table),
        "row_tap_step": rows.tap_step,
        "row_source_step": rows.source_step,
        "column_tap_step": columns.tap_step,
        "column_source_step": columns.source_step,
        "batch_size": batch_size,
        "share": share,
        "source_height": source_size[0],
        "source_width": source_size[1],
        "target_height": target_size[0],
        "target_width": target_size[1],
        "channels": channels,
        "kernel_height": windows.kernel_size[0],
        "kernel_width": windows.kernel_size[1],
    }
    return GroupedSizes(num_tasks, arguments, (rows.table, columns.table))


@lru_cache(maxsize=256)
def grad_weight_sizes(batch_size: int, channels: int, geometry: Any, group_size: int, threads: int) -> GroupedSizes:
    """Sizes of ``grouped_conv_grad_weight`` for ``channels`` of x and grad_out."""
    windows, (height, width) = geometry.windows, geometry.input_size
    kernel_height, kernel_width = windows.kernel_size
    out_height, out_width = windows.output_size(height, width)
    tables = weight_tables(geometry, group_size)
    row_blocks, rows_per_block = split_work(out_height, -(-out_height * out_width // PIXELS_PER_SUM))
    max_parts = MAX_PARTS_NUMEL // (channels * group_size * kernel_height * kernel_width)
    max_tasks = min(_max_tasks(batch_size * channels * group_size, geometry, threads), max(1, max_parts))
    num_tasks, share = split_work(batch_size * row_blocks, max_tasks)
    arguments = {
        "row_taps": tables.row_taps.data_ptr(),
        "segments": tables.segments.data_ptr(),
        **{f"segments_of_{n}": count for n, count in enumerate(tables.segments_of, start=1)},
        "column_tap_step": -1 if geometry.flip_kernel else 1,
        "row_stride": windows.stride[0],
        "column_stride": windows.stride[1],
        "column_dilation": windows.dilation[1],
        "batch_size": batch_size,
        "row_blocks": row_blocks,
        "rows_per_block": rows_per_block,
        "share": share,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "channels": channels,
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
    }
    return GroupedSizes(num_tasks, arguments, (tables.row_taps, tables.segments))


def _max_tasks(products_per_pixel_and_entry: int, geometry: Any, threads: int) -> int:
    out_height, out_width = geometry.windows.output_size(*geometry.input_size)
    kernel_height, kernel_width = geometry.windows.kernel_size
    multiplications = products_per_pixel_and_entry * out_height * out_width * kernel_height * kernel_width
    return max(1, min(threads, multiplications // MULTIPLICATIONS_PER_THREAD))
