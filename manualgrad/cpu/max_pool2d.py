"""The kernels for max-pooling as functions of tensors, and the tables of sources that they read.

``geometry`` is a ``MaxPool2dGeometry`` of ``ops/max_pool2d_geometry.py``. A function ``unsupported_...`` returns the
reason why the kernel does not compute its arguments, "" if it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, memory
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.image_formats import channels_last_copy, contiguous_copy
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.kernel_groups import MAX_POOL_CHANNELS, MAX_POOL_ROWS
from manualgrad.cpu.program import Program
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion
from manualgrad.cpu.tensor_checks import storage_covers, unsupported_tensors

NUMEL_PER_THREAD = 1 << 14  # numbers of the larger image that outweigh the start of a thread
STREAM_NUMEL = 1 << 20  # of results that are stored past the caches: not slower for what follows from here on
MAX_COLUMNS, MAX_STRIDE, MAX_ROWS_STRIDE = 5, 3, 2  # of windows whose columns lie one behind the other in a kernel


def unsupported_max_pool2d_forward_nchw(x: Tensor, geometry: Any) -> str:
    if reason := _unsupported_geometry(geometry) or unsupported_tensors(x):
        return reason
    if x.shape[2:] != geometry.input_size or not x.shape[1]:
        return "the geometry is not that of the images"
    return _unsupported_storage(x)


def max_pool2d_forward_nchw(module: KernelModule, x: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """P(x) and the pooling index of each maximum: (N, C, H, W) to two (N, C, H_out, W_out), float32 and uint8.

    P(x) is in the memory format of the geometry. The pooling index is channels_last, or contiguous if x is too."""
    shape = *x.shape[:2], *geometry.output_size
    if _runs_along_rows(geometry, x):
        out, pool_index = memory.new(*shape), memory.new(*shape, dtype=torch.uint8)
        _run(module, "max_pool2d_rows_forward", x.shape, geometry, 0, (x, out, pool_index))
        return out, pool_index
    x = _channels_last(module, x)
    out, pool_index = memory.new_channels_last(*shape), memory.new_channels_last(*shape, dtype=torch.uint8)
    kernel = "max_pool2d_channels_forward" if _has_few_columns(geometry) else "max_pool2d_forward"
    _run(module, kernel, x.shape, geometry, 0, (x, out, pool_index))
    return _in_format_of(module, out, geometry), pool_index


def unsupported_max_pool2d_forward(x: Tensor, geometry: Any) -> str:
    reason = unsupported_tensors(x) or _unsupported_storage(x)  # of which PyTorch makes no view if it is too small
    return reason or unsupported_max_pool2d_forward_nchw(x.permute(0, 3, 1, 2), geometry)


def max_pool2d_forward(module: KernelModule, x: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """The same with x and the results as (N, H, W, C)."""
    out, pool_index = max_pool2d_forward_nchw(module, x.permute(0, 3, 1, 2), geometry)
    return out.permute(0, 2, 3, 1), pool_index.permute(0, 2, 3, 1)


def unsupported_max_pool2d_backward(g: Tensor, pool_index: Tensor, geometry: Any) -> str:
    if reason := (
        _unsupported_geometry(geometry)
        or unsupported_tensors(g)
        or unsupported_tensors(pool_index, dtype=torch.uint8)
    ):
        return reason
    if g.shape[2:] != geometry.output_size or pool_index.shape != g.shape or not g.shape[1]:
        return "the geometry is not that of the gradients and pooling indices"
    return _unsupported_storage(g, pool_index)


def max_pool2d_backward(module: KernelModule, g: Tensor, pool_index: Tensor, geometry: Any) -> Tensor:
    """P⁻¹(g): (N, C, H_out, W_out) to (N, C, H, W), in the memory format of the geometry."""
    shape = torch.Size((*g.shape[:2], *geometry.input_size))
    if _runs_along_rows(geometry, pool_index):
        g, grad_x = to_contiguous(g), memory.new(*shape)
        _run(module, "max_pool2d_rows_backward", shape, geometry, 1, (g, pool_index, grad_x))
        return grad_x
    g, pool_index = _channels_last(module, g), to_contiguous(pool_index, torch.channels_last)
    grad_x = memory.new_channels_last(*shape)
    kernel = "max_pool2d_channels_backward" if _has_few_columns(geometry) else "max_pool2d_backward"
    _run(module, kernel, shape, geometry, 1, (g, pool_index, grad_x))
    return _in_format_of(module, grad_x, geometry)


def _channels_last(module: KernelModule, x: Tensor) -> Tensor:
    """Return x, (N, C, H, W) of any strides, in channels_last memory."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_neg():
        return x
    return channels_last_copy(module, x).permute(0, 3, 1, 2)


def _in_format_of(module: KernelModule, x: Tensor, geometry: Any) -> Tensor:
    """Return x, (N, C, H, W) in channels_last memory, in the memory format of the geometry."""
    return x if geometry.channels_last else contiguous_copy(module, x.permute(0, 2, 3, 1))


def _has_few_columns(geometry: Any) -> bool:
    """Return True if the kernels with a window's columns one behind the other support the windows."""
    rows, columns = geometry.windows.kernel_size
    if rows * columns > 255 or not 2 <= columns <= MAX_COLUMNS:
        return False
    return bool(geometry.windows.stride[1] <= MAX_STRIDE and geometry.windows.dilation[1] == 1)


def _runs_along_rows(geometry: Any, images: Tensor) -> bool:
    """Return True if the kernels along rows support the windows, and ``images`` and results are contiguous."""
    if geometry.channels_last or geometry.windows.stride[1] > MAX_ROWS_STRIDE or not _has_few_columns(geometry):
        return False
    return images.is_contiguous() and not images.is_neg()


def _unsupported_storage(*tensors: Tensor) -> str:
    if torch.compiler.is_compiling() or all(map(storage_covers, tensors)):
        return ""
    return "the storage of a tensor is too small"


def _unsupported_geometry(geometry: Any) -> str:
    return "" if geometry.index_dtype is torch.uint8 else "a window has more than 256 places"


def _run(
    module: KernelModule, kernel: str, shape: torch.Size, geometry: Any, table: int, tensors: tuple[Tensor, ...]
) -> None:
    """Run ``kernel`` for all rows of its targets: of the maxima with table 0, of the images, ``shape``, with 1.

    ``tensors`` are those of ``_TENSORS``."""
    program, _ = _program(module, kernel, geometry, shape, table, torch.get_num_threads())
    program.run([x.data_ptr() for x in tensors])


_TENSORS = ("x", "out", "pool_index"), ("grad_out", "pool_index", "grad_x")  # of forward and of backward kernels


@lru_cache(maxsize=256)
def _program(
    module: KernelModule, kernel: str, geometry: Any, shape: Sequence[int], table: int, threads: int
) -> tuple[Program, tuple[Tensor, ...]]:
    """A program of one kernel, and the tensors whose addresses are in it."""
    num_tasks, arguments, group, tables = _arguments(kernel, geometry, shape, table, threads)
    if group:
        module = instruction_set.load_group(module.instructions, group)
    names = _TENSORS[table]
    call = module.call(kernel, **arguments, **{name: BufferRef(name) for name in names})
    return Program(module, num_tasks, [ParallelRegion(num_tasks, [call])], names), tables


def _arguments(
    kernel: str, geometry: Any, shape: Sequence[int], table: int, threads: int
) -> tuple[int, dict[str, int], str, tuple[Tensor, ...]]:
    """Number of tasks, arguments that are no addresses of images, the kernel's group, "" for that of the module, and
    the tables whose addresses are among the arguments."""
    batch, channels, height, width = shape
    out_height, out_width = geometry.output_size
    row_sources, column_sources = source_tables(geometry, table)
    is_along_rows = kernel.startswith(MAX_POOL_ROWS)
    target_rows = batch * (height if table else out_height) * (channels if is_along_rows else 1)
    num_tasks, share = split_work(target_rows, max(1, min(threads, math.prod(shape) // NUMEL_PER_THREAD)))
    arguments = {
        "row_sources": row_sources.data_ptr(), "target_rows": target_rows, "share": share, "height": height,
        "width": width, "out_height": out_height, "out_width": out_width,
    }  # fmt: skip
    if not kernel.startswith((MAX_POOL_CHANNELS, MAX_POOL_ROWS)):
        arguments |= {"channels": channels, "column_sources": column_sources.data_ptr()}
        return num_tasks, arguments, "", (row_sources, column_sources)
    windows = geometry.windows
    if not table:
        arguments["next_bytes"] = 4 * windows.stride[0] * width * (1 if is_along_rows else channels)
    if table or not is_along_rows:
        # A vector that computed some results a second time would store again what was stored past the caches. There
        # is none if its lanes, 8 along rows and up to 16 along channels, divide what it covers.
        if is_along_rows:
            has_one_window = windows.padding[2] == 0 and windows.kernel_size[1] <= windows.stride[1]
            is_whole = has_one_window and width % (8 * windows.stride[1]) == 0
        else:
            is_whole = channels % 16 == 0
        out_numel = math.prod(shape) if table else batch * channels * out_height * out_width
        arguments["streams"] = is_whole and out_numel >= STREAM_NUMEL
    sizes = f"{windows.kernel_size[1]}x{windows.stride[1]}x{windows.padding[2]}"
    if is_along_rows:
        return num_tasks, arguments, MAX_POOL_ROWS + sizes, (row_sources,)
    outside = _outside(channels, table)
    arguments |= {"channels": channels, "outside": outside.data_ptr()}
    return num_tasks, arguments, MAX_POOL_CHANNELS + sizes, (row_sources, outside)


def _outside(channels: int, table: int) -> Tensor:
    """A pixel outside of the images for table 0, −∞, and a window outside of the results for table 1, 255."""
    pixel = memory.new(channels, dtype=torch.uint8 if table else torch.float32)
    return pixel.fill_(255 if table else -torch.inf)


def source_tables(geometry: Any, table: int) -> tuple[Tensor, Tensor]:
    """The tables for rows and for columns of the forward kernel, ``table`` 0, or of the backward kernel, 1."""
    windows, (height, width), (out_height, out_width) = geometry.windows, geometry.input_size, geometry.output_size
    (kernel_height, kernel_width), (s1, s2), (d1, d2) = windows.kernel_size, windows.stride, windows.dilation
    top, _, left, _ = windows.padding
    rows = _tables(height, out_height, kernel_height, s1, top, d1, kernel_width)
    return rows[table], _tables(width, out_width, kernel_width, s2, left, d2, 1)[table]


@lru_cache(maxsize=256)
def _tables(
    size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int, factor: int
) -> tuple[Tensor, Tensor]:
    """Sources along one dimension: the pixels of each window, and the windows that have each pixel.

    A table has three integers for each target, two byte offsets into the table and ``place`` of the first source; and
    between these offsets two for each source, its number and its place in the window times ``factor``. Sources are
    in the order of their places: it is the order in which the formula takes maxima, and adds gradients."""
    pixels: list[list[tuple[int, int]]] = [[] for _ in range(out_size)]
    windows: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for place in range(kernel):
        for window in range(out_size):
            pixel = stride * window - padding + dilation * place
            if 0 <= pixel < size:
                pixels[window].append((pixel, place * factor))
                windows[pixel].append((window, place * factor))
    return _table(pixels), _table(windows)


def _table(sources: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    header, entries, start = [], [], 3 * 8 * len(sources)
    for of_target in sources:
        stop = start + 2 * 8 * len(of_target)
        header += [start, stop, of_target[0][1] if of_target else 0]
        entries += [number for source in of_target for number in source]
        start = stop
    words = torch.tensor(header + entries, dtype=torch.int64, device="cpu")
    return memory.new(len(words), dtype=torch.int64).copy_(words)
