"""The kernels for max-pooling as functions of tensors, and the tables of sources that they read.

``geometry`` is a ``MaxPool2dGeometry`` of ``ops/max_pool2d_geometry.py``. A function ``unsupported_...`` returns the
reason why the kernel does not compute its arguments, "" if it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory, team
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.image_formats import channels_last_copy, contiguous_copy
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import storage_covers, unsupported_tensors

NUMEL_PER_THREAD = 1 << 14  # numbers of the larger image that outweigh the start of a thread


def unsupported_max_pool2d_forward(x: Tensor, geometry: Any) -> str:
    if reason := _unsupported_geometry(geometry) or unsupported_tensors(x):
        return reason
    if x.shape[1:3] != geometry.input_size or not x.shape[3]:
        return "the geometry is not that of the images"
    return _unsupported_storage(x)


def max_pool2d_forward(module: KernelModule, x: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """P(x) and the pooling index of each maximum: (N, H, W, C) to two (N, H_out, W_out, C), float32 and uint8.

    P(x) is in the memory format of the geometry, the pooling index is channels_last."""
    if not x.is_contiguous() or x.is_neg():
        x = channels_last_copy(module, x.permute(0, 3, 1, 2))
    out = memory.new(x.shape[0], *geometry.output_size, x.shape[3])
    pool_index = memory.new(*out.shape, dtype=torch.uint8)
    addresses = {"x": x.data_ptr(), "out": out.data_ptr(), "pool_index": pool_index.data_ptr()}
    _run(module, "max_pool2d_forward", x, geometry, 0, addresses)
    return out if geometry.channels_last else contiguous_copy(module, out).permute(0, 2, 3, 1), pool_index


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
    g, pool_index = channels_last_copy(module, g), to_contiguous(pool_index.permute(0, 2, 3, 1))
    grad_x = memory.new(g.shape[0], *geometry.input_size, g.shape[3])
    addresses = {"grad_out": g.data_ptr(), "pool_index": pool_index.data_ptr(), "grad_x": grad_x.data_ptr()}
    _run(module, "max_pool2d_backward", grad_x, geometry, 1, addresses)
    return grad_x.permute(0, 3, 1, 2) if geometry.channels_last else contiguous_copy(module, grad_x)


def _unsupported_storage(*tensors: Tensor) -> str:
    if torch.compiler.is_compiling() or all(map(storage_covers, tensors)):
        return ""
    return "the storage of a tensor is too small"


def _unsupported_geometry(geometry: Any) -> str:
    return "" if geometry.index_dtype is torch.uint8 else "a window has more than 256 places"


def _run(
    module: KernelModule, kernel: str, images: Tensor, geometry: Any, table: int, addresses: dict[str, int]
) -> None:
    """Run ``kernel`` for all rows of its targets: those of the maxima with table 0, of ``images`` with table 1."""
    batch, *_, channels = images.shape
    num_tasks, arguments, _ = _arguments(geometry, batch, channels, table, torch.get_num_threads())
    team.run(module, kernel, num_tasks, **arguments, **addresses)


@lru_cache(maxsize=256)
def _arguments(
    geometry: Any, batch: int, channels: int, table: int, threads: int
) -> tuple[int, dict[str, int], tuple[Tensor, Tensor]]:
    """Number of tasks, arguments that are no addresses of images, and the tables whose addresses are among them."""
    (height, width), (out_height, out_width) = geometry.input_size, geometry.output_size
    row_sources, column_sources = source_tables(geometry, table)
    target_rows, numel = batch * (height if table else out_height), batch * height * width * channels
    num_tasks, share = split_work(target_rows, max(1, min(threads, numel // NUMEL_PER_THREAD)))
    arguments = {
        "row_sources": row_sources.data_ptr(), "column_sources": column_sources.data_ptr(),
        "target_rows": target_rows, "share": share, "height": height, "width": width, "out_height": out_height,
        "out_width": out_width, "channels": channels,
    }  # fmt: skip
    return num_tasks, arguments, (row_sources, column_sources)


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
