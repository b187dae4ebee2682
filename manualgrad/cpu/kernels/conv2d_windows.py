"""Addresses of the pixels that windows have: the part that the kernels of a convolution share.

A kernel computes its windows a chunk at a time. For each tap, which is one place in the window, a table has the
addresses of the pixels that the windows of the chunk have at this place. A pixel outside the image is the address of
zeros, so padding needs no instruction of its own; stride and dilation are in the numbers of the taps.

A task works on a *chunk* of neighbouring windows. A window is at (i, j) of a grid, and its pixel for a tap with the
offsets (p, q) is (row_step·i + p, column_step·j + q).
"""

from __future__ import annotations

from manualgrad.cpu.ir.values import ADDRESS, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import TILE_ROWS
from manualgrad.cpu.signature import INT, POINTER

TAP_WORDS = 3  # integers of a tap: p, q, and the offset in bytes of its weight

WINDOW_ARGUMENTS = {
    "x": POINTER,  # (N, height, width, ...)
    "zeros": POINTER,  # a pixel of zeros
    "taps": POINTER,  # (num_taps, TAP_WORDS) integers
    "num_taps": INT,
    "height": INT,  # of x
    "width": INT,
    "image_bytes": INT,  # from one image of x to the next
    "row_bytes": INT,
    "pixel_bytes": INT,
    "row_step": INT,
    "column_step": INT,
    "grid_rows": INT,
    "grid_columns": INT,
    "windows": INT,  # N·grid_rows·grid_columns
    "chunk": INT,  # windows of a chunk, a multiple of TILE_ROWS
    "table": POINTER,  # scratch memory of each task: num_taps + 1 rows of ``chunk`` addresses
}


def fill_table(
    emit: Emitter, a: Arguments, table: Value, windows: tuple[Value, Value], strides: tuple[Value, ...] = ()
) -> None:
    """Fill the table of a chunk, and its last row with offsets if there are ``strides``, of image, row and column.

    Rows are filled with addresses of zeros up to whole tiles."""
    start, stop = windows
    zero, row_bytes = emit.constant(INT64, 0), a.chunk * 8
    with emit.loop(start // a.grid_columns, (stop + a.grid_columns - 1) // a.grid_columns) as grid_row:
        first = grid_row * a.grid_columns
        j = emit.select(first < start, start - first, zero)
        count = emit.select(stop - first < a.grid_columns, stop - first, a.grid_columns) - j
        entries, image, i = table + (first + j - start) * 8, grid_row // a.grid_rows, grid_row % a.grid_rows
        with emit.loop(0, a.num_taps) as tap:
            words, row_of_table = a.taps + tap * (8 * TAP_WORDS), entries + tap * row_bytes
            row, column = i * a.row_step + emit.load(words, INT64), j * a.column_step + emit.load(words + 8, INT64)
            width = emit.select(row.ult(a.height), a.width, zero)
            pixel = a.x + (image * a.image_bytes + row * a.row_bytes + column * a.pixel_bytes)
            with emit.loop(0, count) as n:
                inside = (column + n * a.column_step).ult(width)
                address = pixel + n * (a.column_step * a.pixel_bytes)
                emit.store(emit.select(inside, address, a.zeros), row_of_table + n * 8)
        if strides:
            offset = image * strides[0] + i * strides[1] + j * strides[2]
            with emit.loop(0, count) as n:
                emit.store(offset + n * strides[2], entries + a.num_taps * row_bytes + n * 8)
    count = stop - start
    with emit.loop(count, (count + (TILE_ROWS - 1)) // TILE_ROWS * TILE_ROWS) as n, emit.loop(0, a.num_taps) as tap:
        emit.store(a.zeros, table + n * 8 + tap * row_bytes)


def load_address(emit: Emitter, address: Value) -> Value:
    return emit.load(address, ADDRESS)
