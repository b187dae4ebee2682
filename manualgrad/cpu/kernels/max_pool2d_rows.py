"""P(x) and P⁻¹(g) of max-pooling as in ``max_pool2d.py``, for contiguous images: vectors run along a row.

    P_ijk(x) = max_pq x_(s1·i+p)(s2·j+q)k                                        (4)

The number of a window's columns, the stride s2, 1 or 2, and the padding are known when the kernels are compiled.
Forward, a vector has neighbouring windows. With stride 2 their pixels are every second float of two vectors, which
one shuffle picks; the lanes of 8 windows are in the order ``LANE_ORDER`` until the store. Backward, a vector has
neighbouring cells of s2 pixels, as in ``max_pool2d_channels.py``: pixel n of each cell in vector n, until the store.

The last vector of a row ends with it, and may compute some windows a second time. Windows and cells at the left and
right border are computed one by one, and so are all in a row shorter than a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from llvmlite import ir

from manualgrad.cpu.ir.streams import end_streams
from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value, Variable, constant
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import minimum
from manualgrad.cpu.kernels.max_pool2d import Tile, read_sources
from manualgrad.cpu.kernels.max_pool2d_channels import (
    CACHE_LINE_BYTES,
    add_where,
    store_result,
    take_maximum,
    window_columns,
)
from manualgrad.cpu.signature import BOOL, INT, POINTER, Kernel, kernel

LANES = 8, 4  # of vectors, with AVX-512 too: rows are short
EVEN = {8: (0, 2, 8, 10, 4, 6, 12, 14), 4: (0, 2, 4, 6)}  # shuffles of two vectors, within each 16 bytes
LANE_ORDER = {8: (0, 1, 4, 5, 2, 3, 6, 7), 4: (0, 1, 2, 3)}  # of EVEN; its own inverse


def max_pool2d_rows_forward(columns: int, stride: int, padding: int) -> Kernel:
    """The kernel of maxima for windows of ``columns`` columns."""

    @kernel(
        x=POINTER,  # (N, C, H, W)
        out=POINTER,  # (N, C, H_out, W_out)
        pool_index=POINTER,  # the same, bytes
        row_sources=POINTER,  # the table for H_out targets
        target_rows=INT,  # N·C·H_out
        share=INT,  # target rows per task
        height=INT,
        width=INT,
        out_height=INT,
        out_width=INT,
        next_bytes=INT,  # from a row of windows to the next one, in x
    )
    def max_pool2d_rows_forward(emit: Emitter, a: Arguments) -> None:
        """Compute the maxima of this task's rows of windows, and their pooling indices."""
        first_whole = emit.constant(INT64, -(-padding // stride))
        last_start = a.width + (padding - columns)  # of a whole window, less than 0 if there is none
        stop_whole = emit.select(last_start < 0, emit.constant(INT64, 0), last_start // stride + 1)
        with emit.loop(*task_range(emit, a, a.target_rows)) as row:
            rows = read_sources(emit, a.row_sources, row % a.out_height)
            image = a.x + row // a.out_height * a.height * a.width * 4
            for j, tile in _row_tiles(emit, first_whole, stop_whole, a.out_width):
                first_column = j * stride - padding
                maxima, index = _maxima(emit, a, rows, image, first_column, tile, columns, stride)
                offset = row * a.out_width + j
                emit.store(maxima, a.out + offset * 4)
                emit.store(emit.trunc(index, tile.bytes), a.pool_index + offset)

    return max_pool2d_rows_forward


def _row_tiles(emit: Emitter, first: Value, stop: Value, count: Value) -> Iterator[tuple[Value, Tile]]:
    """Cover ``range(count)``: vectors in ``range(first, stop)``, which no border meets, else singly."""
    first = minimum(emit, first, count)
    stop = minimum(emit, stop, count)
    whole = stop - first
    is_left = whole == whole
    for lanes in LANES:
        is_used, is_left = is_left & (whole > lanes - 1), is_left & (whole < lanes)
        with emit.loop(first, emit.select(is_used, stop, first), lanes) as n:
            yield minimum(emit, n, stop - lanes), Tile(emit, first, 1, lanes)
    in_vectors = emit.select(is_left, emit.constant(INT64, 0), whole)
    with emit.loop(0, count - in_vectors) as n:
        yield emit.select(n < first, n, n + in_vectors), Tile(emit, first, 1, 1)


def _maxima(
    emit: Emitter, a: Arguments, rows: Arguments, image: Value, first_column: Value, tile: Tile, columns: int,
    stride: int,
) -> tuple[Value, Value]:  # fmt: skip
    """Maxima of a vector of windows, or of one window, and their pooling indices."""
    zero = emit.constant(INT64, 0)
    first_index = rows.first_place
    if tile.lanes == 1:
        columns_before = emit.select(first_column < 0, zero - first_column, zero)
        first_index = emit.select(rows.start < rows.stop, first_index + columns_before, zero)
    maximum = emit.variable(emit.constant(tile.floats, -math.inf))
    index = emit.variable(tile.splat(emit.trunc(first_index, INT32)))
    with emit.loop(rows.start, rows.stop, 16) as source:
        pixel_row, place = (emit.load(a.row_sources + source + 8 * n, INT64) for n in range(2))
        address = image + (pixel_row * a.width + first_column) * 4
        if tile.lanes == 1:
            is_inside = [(first_column + q).ult(a.width) for q in range(columns)]
            pixels = [_load_if(emit, is_inside[q], address + 4 * q, image) for q in range(columns)]
        else:
            pixels = list(_window_pixels(emit, tile, columns, stride, address))
            if tile.lanes * stride * 4 >= CACHE_LINE_BYTES:
                emit.prefetch(address + a.next_bytes)
        start_place = tile.splat(emit.trunc(place, INT32))
        for q, pixel in enumerate(pixels):
            take_maximum(emit, pixel, start_place + q, maximum, index)
    results = maximum.get(), index.get()
    if tile.lanes == 1 or stride == 1:
        return results
    return _shuffle(emit, results[0], results[0], LANE_ORDER), _shuffle(emit, results[1], results[1], LANE_ORDER)


def _load_if(emit: Emitter, condition: Value, address: Value, readable: Value) -> Value:
    """Load the float at ``address`` if ``condition`` is true, else return −∞."""
    value = emit.load(emit.select(condition, address, readable), FLOAT)
    return emit.select(condition, value, emit.constant(FLOAT, -math.inf))


def _window_pixels(emit: Emitter, tile: Tile, columns: int, stride: int, address: Value) -> Iterator[Value]:
    """The pixels of a vector of windows in each of their columns; the first window's are at ``address``."""

    def load(column: int) -> Value:
        return emit.load(address + 4 * column, tile.floats)

    if stride == 1:
        yield from map(load, range(columns))
        return
    for q in range(0, columns - 1, 2):
        pair = load(q), load(q + tile.lanes)
        yield _shuffle(emit, *pair, EVEN)
        yield _shuffle(emit, *pair, _shifted(EVEN, 1, 1))
    if columns % 2:  # the second vector begins one float earlier, to read no float behind the last window
        yield _shuffle(emit, load(columns - 1), load(columns + tile.lanes - 2), _shifted(EVEN, 0, 1))


def _shifted(shuffles: Mapping[int, Sequence[int]], low: int, high: int) -> dict[int, Sequence[int]]:
    """Shuffles of the lanes that are behind those of ``shuffles`` in the first and in the second vector."""
    return {lanes: [n + (low if n < lanes else high) for n in order] for lanes, order in shuffles.items()}


def _shuffle(emit: Emitter, a: Value, b: Value, order: Mapping[int, Sequence[int]]) -> Value:
    """Return a vector of lanes of ``a``, and of ``b``, whose numbers begin behind those of ``a``."""
    lanes = order[a.raw.type.count]
    mask = constant(ir.VectorType(INT32, len(lanes)), lanes)
    return Value(emit.builder, emit.builder.shuffle_vector(a.raw, b.raw, mask))


def max_pool2d_rows_backward(columns: int, stride: int, padding: int) -> Kernel:
    """The kernel of the pixels' gradients for windows of ``columns`` columns."""

    @kernel(
        grad_out=POINTER,  # (N, C, H_out, W_out)
        pool_index=POINTER,  # the same, bytes
        grad_x=POINTER,  # (N, C, H, W)
        row_sources=POINTER,  # the table for H targets
        target_rows=INT,  # N·C·H
        share=INT,  # target rows per task
        height=INT,
        width=INT,
        out_height=INT,
        out_width=INT,
        streams=BOOL,  # store past the caches
    )
    def max_pool2d_rows_backward(emit: Emitter, a: Arguments) -> None:
        """Compute the gradients of this task's rows of pixels, each the sum of its windows in the formula's order."""
        windows = window_columns(columns, stride, padding)
        first_whole = emit.constant(INT64, max(0, -min(windows)))
        stop_whole = minimum(emit, a.out_width - max(windows), a.width // stride)
        with emit.loop(*task_range(emit, a, a.target_rows)) as row:
            rows = read_sources(emit, a.row_sources, row % a.height)
            first_window = row // a.height * a.out_height * a.out_width
            cells = (a.width + (stride - 1)) // stride
            for cell, tile in _row_tiles(emit, first_whole, stop_whole, cells):
                totals = [emit.variable(emit.constant(tile.floats, 0)) for _ in range(stride)]
                with emit.loop(rows.start, rows.stop, 16) as source:
                    window_row, place = (emit.load(a.row_sources + source + 8 * n, INT64) for n in range(2))
                    start_place = tile.splat(emit.trunc(place, INT32))
                    window = first_window + window_row * a.out_width + cell
                    for m, taps in windows.items():
                        if tile.lanes > 1:
                            _add_grads(emit, a, window + m, start_place, taps, totals, tile)
                            continue
                        with emit.if_then((cell + m).ult(a.out_width)):
                            _add_grads(emit, a, window + m, start_place, taps, totals, tile)
                _store_pixels(emit, a, row * a.width, cell * stride, [total.get() for total in totals], tile)
        end_streams(emit)

    return max_pool2d_rows_backward


def _add_grads(
    emit: Emitter, a: Arguments, window: Value, start_place: Value, taps: Sequence[tuple[int, int]],
    totals: Sequence[Variable], tile: Tile,
) -> None:  # fmt: skip
    """Add the gradient of a window, or of a vector of them, to its pixels; ``taps`` are pixels and their columns."""
    grad_out = emit.load(a.grad_out + window * 4, tile.floats)
    pool_index = emit.zext(emit.load(a.pool_index + window, tile.bytes), tile.ints)
    for pixel, q in taps:
        add_where(emit, pool_index == start_place + q, grad_out, totals[pixel])


def _store_pixels(
    emit: Emitter, a: Arguments, row_start: Value, column: Value, pixels: Sequence[Value], tile: Tile
) -> None:
    if tile.lanes == 1:
        for n, pixel in enumerate(pixels):
            with emit.if_then((column + n).ult(a.width)):
                emit.store(pixel, a.grad_x + (row_start + column + n) * 4)
        return
    vectors = pixels
    if len(pixels) == 2:
        orders = [range(start, start + tile.lanes // 2) for start in (0, tile.lanes // 2)]
        interleaved = [[lane for n in order for lane in (n, n + tile.lanes)] for order in orders]
        vectors = [_shuffle(emit, pixels[0], pixels[1], {tile.lanes: lanes}) for lanes in interleaved]
    for n, vector in enumerate(vectors):
        store_result(emit, vector, a.grad_x + (row_start + column + tile.lanes * n) * 4, a.streams)
