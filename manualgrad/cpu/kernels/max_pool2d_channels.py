"""P(x) and P⁻¹(g) of max-pooling as in ``max_pool2d.py``, for windows with few neighbouring columns, channels last.

    P_ijk(x) = max_pq x_(s1·i+p)(s2·j+q)k                                        (4)

The number of a window's columns, the stride s2 and the padding are known when the kernels are compiled. So a loop
over the rows of a window has its columns one behind the other; and s2 neighbouring pixels, a *cell*, read the
gradients of their windows once. Rows need no such knowledge: a table lists the sources of each.

Where a window reaches over the left or right border, it reads ``outside`` in place of a pixel: numbers −∞, which are
no maximum. A cell reads ``outside`` in place of a window: bytes 255, which are no pooling index here.
"""

from __future__ import annotations

import math

from manualgrad.cpu.ir.streams import end_streams, stream
from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value, Variable
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.max_pool2d import Tile, channel_tiles, read_sources
from manualgrad.cpu.signature import BOOL, INT, POINTER, Kernel, kernel

VECTORS_PER_TILE = 4, 2
CACHE_LINE_BYTES = 64


def max_pool2d_channels_forward(columns: int, stride: int, padding: int) -> Kernel:
    """The kernel of maxima for windows of ``columns`` columns."""

    @kernel(
        x=POINTER,  # (N, H, W, C)
        out=POINTER,  # (N, H_out, W_out, C)
        pool_index=POINTER,  # the same, bytes
        outside=POINTER,  # C numbers −∞
        row_sources=POINTER,  # the table for H_out targets
        target_rows=INT,  # N·H_out
        share=INT,  # target rows per task
        height=INT,
        width=INT,
        out_height=INT,
        out_width=INT,
        channels=INT,
        next_bytes=INT,  # from a row of windows to the next one, in x
        streams=BOOL,  # store past the caches
    )
    def max_pool2d_channels_forward(emit: Emitter, a: Arguments) -> None:
        """Compute the maxima of this task's rows of windows, and their pooling indices."""
        zero, pixel_bytes = emit.constant(INT64, 0), a.channels * 4
        with emit.loop(*task_range(emit, a, a.target_rows)) as row:
            rows = read_sources(emit, a.row_sources, row % a.out_height)
            image = a.x + row // a.out_height * a.height * a.width * pixel_bytes
            with emit.loop(0, a.out_width) as j:
                first_column = j * stride - padding
                is_inside = [(first_column + q).ult(a.width) for q in range(columns)]
                columns_before = emit.select(first_column < 0, zero - first_column, zero)
                has_pixel = rows.start < rows.stop
                first = emit.trunc(emit.select(has_pixel, rows.first_place + columns_before, zero), INT32)
                for tile in channel_tiles(emit, a.channels, *VECTORS_PER_TILE):
                    maxima = [emit.variable(emit.constant(tile.floats, -math.inf)) for _ in range(tile.vectors)]
                    indices = [emit.variable(tile.splat(first)) for _ in range(tile.vectors)]
                    with emit.loop(rows.start, rows.stop, 16) as source:
                        pixel_row, place = (emit.load(a.row_sources + source + 8 * n, INT64) for n in range(2))
                        pixel = image + (pixel_row * a.width + first_column) * pixel_bytes
                        for q in range(columns):
                            address = emit.select(is_inside[q], pixel + pixel_bytes * q, a.outside) + tile.channel * 4
                            index = tile.splat(emit.trunc(place + q, INT32))
                            for v in range(tile.vectors):
                                value = emit.load(address + v * emit.vector_bytes, tile.floats)
                                # other columns are those of the next window
                                if q < stride and v * emit.vector_bytes % CACHE_LINE_BYTES == 0:
                                    emit.prefetch(address + a.next_bytes + v * emit.vector_bytes)
                                take_maximum(emit, value, index, maxima[v], indices[v])
                    offset = (row * a.out_width + j) * a.channels + tile.channel
                    for v in range(tile.vectors):
                        store_result(emit, maxima[v].get(), a.out + offset * 4 + v * emit.vector_bytes, a.streams)
                        emit.store(emit.trunc(indices[v].get(), tile.bytes), a.pool_index + offset + v * emit.lanes)
        end_streams(emit)

    return max_pool2d_channels_forward


def take_maximum(emit: Emitter, value: Value, index: Value, maximum: Variable, pool_index: Variable) -> None:
    """Replace ``maximum`` where ``value`` is larger, or NaN, which replaces a number and an earlier NaN."""
    is_new = (value > maximum.get()) | value.is_nan()
    maximum.set(emit.select(is_new, value, maximum.get()))  # eq. (4)
    pool_index.set(emit.select(is_new, index, pool_index.get()))


def max_pool2d_channels_backward(columns: int, stride: int, padding: int) -> Kernel:
    """The kernel of the pixels' gradients for windows of ``columns`` columns."""

    @kernel(
        grad_out=POINTER,  # (N, H_out, W_out, C)
        pool_index=POINTER,  # the same, bytes
        grad_x=POINTER,  # (N, H, W, C)
        outside=POINTER,  # C bytes 255
        row_sources=POINTER,  # the table for H targets
        target_rows=INT,  # N·H
        share=INT,  # target rows per task
        height=INT,
        width=INT,
        out_height=INT,
        out_width=INT,
        channels=INT,
        streams=BOOL,  # store past the caches
    )
    def max_pool2d_channels_backward(emit: Emitter, a: Arguments) -> None:
        """Compute the gradients of this task's rows of pixels, each the sum of its windows in the formula's order."""
        windows = window_columns(columns, stride, padding)
        with emit.loop(*task_range(emit, a, a.target_rows)) as row:
            rows, image = read_sources(emit, a.row_sources, row % a.height), row // a.height
            with emit.loop(0, (a.width + (stride - 1)) // stride) as cell:
                is_window = {m: (cell + m).ult(a.out_width) for m in windows}
                for tile in channel_tiles(emit, a.channels, *VECTORS_PER_TILE):
                    totals = _cell_totals(emit, tile, stride)
                    with emit.loop(rows.start, rows.stop, 16) as source:
                        window_row, place = (emit.load(a.row_sources + source + 8 * n, INT64) for n in range(2))
                        first = (image * a.out_height + window_row) * a.out_width + cell
                        for m, taps in windows.items():
                            window = (first + m) * a.channels
                            index = emit.select(is_window[m], a.pool_index + window, a.outside) + tile.channel
                            grad = emit.select(is_window[m], a.grad_out + window * 4, a.grad_out) + tile.channel * 4
                            for v in range(tile.vectors):
                                index_bytes = emit.load(index + v * emit.lanes, tile.bytes)
                                grad_out = emit.load(grad + v * emit.vector_bytes, tile.floats)
                                pool_index = emit.zext(index_bytes, tile.ints)
                                for pixel, q in taps:
                                    add_where(
                                        emit, pool_index == tile.splat(emit.trunc(place + q, INT32)), grad_out,
                                        totals[pixel][v],
                                    )  # fmt: skip
                    for pixel, of_pixel in enumerate(totals):
                        column = cell * stride + pixel
                        offset = (row * a.width + column) * a.channels + tile.channel
                        with emit.if_then(column.ult(a.width)):
                            for v, total in enumerate(of_pixel):
                                address = a.grad_x + offset * 4 + v * emit.vector_bytes
                                store_result(emit, total.get(), address, a.streams)
        end_streams(emit)

    return max_pool2d_channels_backward


def _cell_totals(emit: Emitter, tile: Tile, pixels: int) -> list[list[Variable]]:
    zero = emit.constant(tile.floats, 0)
    return [[emit.variable(zero) for _ in range(tile.vectors)] for _ in range(pixels)]


def window_columns(columns: int, stride: int, padding: int) -> dict[int, list[tuple[int, int]]]:
    """The windows of a cell of ``stride`` pixels: for each the pixels that it has, and their columns in the window.

    A key and the cell's number are the number of the window; they are in the order of a pixel's columns."""
    windows: dict[int, list[tuple[int, int]]] = {}
    for q in range(columns):
        pixel = (q - padding) % stride
        windows.setdefault((pixel + padding - q) // stride, []).append((pixel, q))
    return dict(sorted(windows.items(), reverse=True))


def store_result(emit: Emitter, vector: Value, address: Value, streams: Value) -> None:
    """Store a vector of results, or a single one, past the caches if ``streams`` is true.

    Memory that is not in the caches is read before it is written, unless what is written passes them."""
    if vector.raw.type == FLOAT:
        emit.store(vector, address)
        return
    with emit.if_then(streams > 0):
        stream(emit, vector, address)
    with emit.if_then(streams == 0):
        emit.store(vector, address)


def add_where(emit: Emitter, condition: Value, value: Value, total: Variable) -> None:
    """Add ``value`` to ``total`` in lanes where ``condition`` is true."""
    total.add(emit.select(condition, value, emit.constant(value.raw.type, 0)))  # eq. (4)
