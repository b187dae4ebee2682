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
from manualgrad.cpu.signature import INT, POINTER

TAP_WORDS = 3  # integers of a tap: p, q, and the offset in bytes of its weight
TILE_ROWS = 6  # windows, or numbers of a pixel, of a tile in the registers

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
    emit: Emitter, a: Arguments, table: Value, windows: tuple[Value, Value], strides: tuple[Value, Value, Value] | None
) -> None:
    """Fill the table of a chunk, and its last row with offsets if there are ``strides``, of image, row and column.

    Rows are filled with addresses of zeros up to whole tiles."""
    start, stop = windows
    zero, row_bytes = emit.constant(INT64, 0), a.chunk * 8
    in_image = start % (a.grid_rows * a.grid_columns)
    image, i, j = (
        emit.variable(n)
        for n in (start // (a.grid_rows * a.grid_columns), in_image // a.grid_columns, in_image % a.grid_columns)
    )
    with emit.loop(start, stop) as window:
        entry = table + (window - start) * 8
        x, top, left = a.x + image.get() * a.image_bytes, i.get() * a.row_step, j.get() * a.column_step
        with emit.loop(0, a.num_taps) as tap:
            words = a.taps + tap * (8 * TAP_WORDS)
            row, column = top + emit.load(words, INT64), left + emit.load(words + 8, INT64)
            inside = row.ult(a.height) & column.ult(a.width)
            pixel = x + (row * a.row_bytes + column * a.pixel_bytes)
            emit.store(emit.select(inside, pixel, a.zeros), entry + tap * row_bytes)
        if strides is not None:
            offset = image.get() * strides[0] + i.get() * strides[1] + j.get() * strides[2]
            emit.store(offset, entry + a.num_taps * row_bytes)
        j.add(1)
        row_ends = j.get() == a.grid_columns
        j.set(emit.select(row_ends, zero, j.get()))
        i.add(emit.zext(row_ends, INT64))
        image_ends = i.get() == a.grid_rows
        i.set(emit.select(image_ends, zero, i.get()))
        image.add(emit.zext(image_ends, INT64))
    count = stop - start
    with emit.loop(count, (count + (TILE_ROWS - 1)) // TILE_ROWS * TILE_ROWS) as n, emit.loop(0, a.num_taps) as tap:
        emit.store(a.zeros, table + n * 8 + tap * row_bytes)


def load_address(emit: Emitter, address: Value) -> Value:
    return emit.load(address, ADDRESS)


def panel_vectors(emit: Emitter) -> int:
    """Vectors of channels of a tile: with TILE_ROWS rows 12 of 16 registers, or 24 of 32."""
    return 4 if emit.lanes == 16 else 2
