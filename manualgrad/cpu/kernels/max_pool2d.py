"""P(x) and P⁻¹(g) of max-pooling with any windows, as ``ops/max_pool2d.py`` defines them, channels last.

    P_ijk(x) = max_pq x_(s1·i+p)(s2·j+q)k                                        (4)

Both kernels compute each target from its sources: a maximum from the pixels of its window, the gradient of a pixel
from the windows that have it. A table for the rows and one for the columns list the sources, so that strides,
dilation and padding need no instructions of their own; ``cpu/max_pool2d.py`` describes them.

Vectors run over the channels. The last one ends with the last channel, and may compute some channels a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import BYTE, FLOAT, INT32, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel

VECTORS_PER_TILE = 4
NARROW = 4  # lanes of a vector for fewer channels than a whole vector has


@kernel(
    x=POINTER,  # (N, H, W, C)
    out=POINTER,  # (N, H_out, W_out, C)
    pool_index=POINTER,  # the same, bytes
    row_sources=POINTER,  # the table for H_out targets
    column_sources=POINTER,  # the table for W_out targets
    target_rows=INT,  # N·H_out
    share=INT,  # target rows per task
    height=INT,
    width=INT,
    out_height=INT,
    out_width=INT,
    channels=INT,
)
def max_pool2d_forward(emit: Emitter, a: Arguments) -> None:
    """Compute the maxima of this task's rows of windows, and their pooling indices."""
    for image, offset, rows, columns, tile in _targets(emit, a, a.out_height, a.out_width):
        x = a.x + image * a.height * a.width * a.channels * 4
        has_pixel = (rows.start < rows.stop) & (columns.start < columns.stop)
        first_index = emit.select(has_pixel, rows.first_place + columns.first_place, emit.constant(INT64, 0))
        first = tile.splat(emit.trunc(first_index, INT32))
        maxima = [emit.variable(emit.constant(tile.floats, -math.inf)) for _ in range(tile.vectors)]
        indices = [emit.variable(first) for _ in range(tile.vectors)]
        with _each_source(emit, rows, columns, a.width) as (source, place):
            address, index = x + (source * a.channels + tile.channel) * 4, tile.splat(emit.trunc(place, INT32))
            for v in range(tile.vectors):
                value = emit.load(address + v * emit.vector_bytes, tile.floats)
                is_new = (value > maxima[v].get()) | value.is_nan()  # NaN replaces a number, and an earlier NaN
                maxima[v].set(emit.select(is_new, value, maxima[v].get()))  # eq. (4)
                indices[v].set(emit.select(is_new, index, indices[v].get()))
        for v in range(tile.vectors):
            emit.store(maxima[v].get(), a.out + offset * 4 + v * emit.vector_bytes)
            emit.store(emit.trunc(indices[v].get(), tile.bytes), a.pool_index + offset + v * emit.lanes)


@kernel(
    grad_out=POINTER,  # (N, H_out, W_out, C)
    pool_index=POINTER,  # the same, bytes
    grad_x=POINTER,  # (N, H, W, C)
    row_sources=POINTER,  # the table for H targets
    column_sources=POINTER,  # the table for W targets
    target_rows=INT,  # N·H
    share=INT,  # target rows per task
    height=INT,
    width=INT,
    out_height=INT,
    out_width=INT,
    channels=INT,
)
def max_pool2d_backward(emit: Emitter, a: Arguments) -> None:
    """Compute the gradients of this task's rows of pixels, each the sum of its windows in the formula's order."""
    for image, offset, rows, columns, tile in _targets(emit, a, a.height, a.width):
        first = image * a.out_height * a.out_width
        zero = emit.constant(tile.floats, 0)
        totals = [emit.variable(zero) for _ in range(tile.vectors)]
        with _each_source(emit, rows, columns, a.out_width) as (source, place):
            window, index = (first + source) * a.channels + tile.channel, tile.splat(emit.trunc(place, INT32))
            for v in range(tile.vectors):
                index_bytes = emit.load(a.pool_index + window + v * emit.lanes, tile.bytes)
                grad_out = emit.load(a.grad_out + window * 4 + v * emit.vector_bytes, tile.floats)
                totals[v].add(emit.select(emit.zext(index_bytes, tile.ints) == index, grad_out, zero))  # eq. (4)
        for v in range(tile.vectors):
            emit.store(totals[v].get(), a.grad_x + offset * 4 + v * emit.vector_bytes)


class Tile:
    """``vectors`` vectors of ``lanes`` channels each, or of one number each if it is 1, beginning at ``channel``."""

    def __init__(self, emit: Emitter, channel: Value, vectors: int, lanes: int) -> None:
        self.emit, self.channel, self.vectors, self.lanes = emit, channel, vectors, lanes
        types = (FLOAT, INT32, BYTE)
        self.floats, self.ints, self.bytes = (t if lanes == 1 else ir.VectorType(t, lanes) for t in types)

    def splat(self, value: Value) -> Value:
        return value if self.lanes == 1 else self.emit.splat(value, self.lanes)


def _targets(
    emit: Emitter, a: Arguments, height: Value, width: Value
) -> Iterator[tuple[Value, Value, Arguments, Arguments, Tile]]:
    """Loop over this task's targets: image, number of the first float, sources by row and column, and channels."""
    with emit.loop(*task_range(emit, a, a.target_rows)) as row:
        rows = read_sources(emit, a.row_sources, row % height)
        with emit.loop(0, width) as column:
            columns = read_sources(emit, a.column_sources, column)
            for tile in channel_tiles(emit, a.channels, VECTORS_PER_TILE):
                yield row // height, (row * width + column) * a.channels + tile.channel, rows, columns, tile


def channel_tiles(emit: Emitter, channels: Value, *sizes: int) -> Iterator[Tile]:
    """Cover ``channels`` with tiles of ``sizes`` vectors, the largest first, and smaller ones."""
    whole = zero = emit.constant(INT64, 0)
    for vectors in sizes:
        start, whole = whole, channels - channels % (vectors * emit.lanes)
        with emit.loop(start, whole, vectors * emit.lanes) as channel:
            yield Tile(emit, channel, vectors, emit.lanes)
    is_left = channels > whole
    for lanes in (emit.lanes, NARROW, 1):
        is_chosen = is_left & (channels > lanes - 1)
        is_left = is_left & (channels < lanes)
        with emit.loop(whole, emit.select(is_chosen, channels, zero), lanes) as channel:
            last = channels - lanes
            yield Tile(emit, emit.select(channel < last, channel, last), 1, lanes)


def read_sources(emit: Emitter, table: Value, target: Value) -> Arguments:
    """Read a target's entry: the addresses of its first source and of the end, and the place of the first."""
    start, stop, first_place = (emit.load(table + target * 24 + 8 * n, INT64) for n in range(3))
    return Arguments(table=table, start=start, stop=stop, first_place=first_place)


@contextmanager
def _each_source(emit: Emitter, rows: Arguments, columns: Arguments, width: Value) -> Iterator[tuple[Value, Value]]:
    """Loop over sources by row, then column: number of the pixel or window in its image, and place in the window."""
    with emit.loop(rows.start, rows.stop, 16) as m, emit.loop(columns.start, columns.stop, 16) as n:
        row, row_place = (emit.load(rows.table + m + 8 * i, INT64) for i in range(2))
        column, column_place = (emit.load(columns.table + n + 8 * i, INT64) for i in range(2))
        yield row * width + column, row_place + column_place
