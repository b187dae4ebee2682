"""Addresses of the pixels that windows have: the part that the kernels of a convolution share.

A kernel computes its windows a *chunk* at a time. A window is at (i, j) of a grid, and its pixel for a tap with the
offsets (p, q) is (row_step·i + p, column_step·j + q). Stride and dilation are in the numbers of the taps.

``fill_table`` lists for each tap the addresses of the pixels of all windows of a chunk. A pixel outside the image is
the address of zeros, so padding needs no instruction of its own. ``fill_lists`` can leave out
windows whose pixel is outside.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.ir.values import ADDRESS, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import TILE_ROWS, minimum
from manualgrad.cpu.signature import INT, POINTER

TAP_WORDS = 3  # integers of a tap: p, q, and the offset in bytes of its weight
PLACE_WORDS = 2  # integers of a place: i and j
ENTRY_BYTES = 16  # of a list: a pixel's address, and the number of its window in the chunk

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
}
PLACE_ARGUMENTS = {
    "places": POINTER,  # (grid_rows·grid_columns, PLACE_WORDS) integers
    "images_per_block": INT,
}
Strides = tuple[Value, Value, Value]  # of image, row and column


def fill_table(emit: Emitter, a: Arguments, table: Value, windows: tuple[Value, Value], strides: Strides) -> None:
    """Fill the table of a chunk: num_taps rows of ``chunk`` addresses, and one of offsets by ``strides``.

    Windows are in the order of images, rows and columns; or, if there are ``images_per_block``, in that of blocks of
    images, of ``places``, and images of a block. Rows are filled with addresses of zeros up to whole tiles."""
    start, stop = windows
    with emit.if_then(a.images_per_block == 0):
        _fill_rows(emit, a, table, start, stop, strides)
    with emit.if_then(a.images_per_block > 0):
        _fill_places(emit, a, table, start, stop, strides)
    count = stop - start
    with emit.loop(count, (count + (TILE_ROWS - 1)) // TILE_ROWS * TILE_ROWS) as n, emit.loop(0, a.num_taps) as tap:
        emit.store(a.zeros, table + n * 8 + tap * a.chunk * 8)


def _fill_rows(emit: Emitter, a: Arguments, table: Value, start: Value, stop: Value, strides: Strides) -> None:
    """Fill the table of windows in the order of images, rows and columns."""
    zero, row_bytes = emit.constant(INT64, 0), a.chunk * 8
    with emit.loop(start // a.grid_columns, (stop + a.grid_columns - 1) // a.grid_columns) as grid_row:
        first = grid_row * a.grid_columns
        j = emit.select(first < start, start - first, zero)
        count = minimum(emit, stop - first, a.grid_columns) - j
        entries, image, i = table + (first + j - start) * 8, grid_row // a.grid_rows, grid_row % a.grid_rows
        with emit.loop(0, a.num_taps) as tap:
            row, column = _pixel_of_tap(emit, a, tap, i, j)
            width = emit.select(row.ult(a.height), a.width, zero)
            pixel, row_of_table = _pixel_address(a, image, row, column), entries + tap * row_bytes
            with emit.loop(0, count) as n:
                inside = (column + n * a.column_step).ult(width)
                address = pixel + n * (a.column_step * a.pixel_bytes)
                emit.store(emit.select(inside, address, a.zeros), row_of_table + n * 8)
        offset = image * strides[0] + i * strides[1] + j * strides[2]
        with emit.loop(0, count) as n:
            emit.store(offset + n * strides[2], entries + a.num_taps * row_bytes + n * 8)


def _fill_places(emit: Emitter, a: Arguments, table: Value, start: Value, stop: Value, strides: Strides) -> None:
    """Fill the table of windows in the order of blocks of images, places, and images of a block."""
    zero, row_bytes = emit.constant(INT64, 0), a.chunk * 8
    num_places = a.grid_rows * a.grid_columns
    block_windows = num_places * a.images_per_block
    with emit.loop(start // block_windows, (stop + block_windows - 1) // block_windows) as block:
        first_of_block, first_image = block * block_windows, block * a.images_per_block
        images = minimum(emit, a.images_per_block, a.windows // num_places - first_image)
        first_place = emit.select(first_of_block < start, start - first_of_block, zero) // images
        last_place = minimum(emit, (stop - first_of_block + images - 1) // images, num_places)
        with emit.loop(first_place, last_place) as place:
            first = first_of_block + place * images
            n = emit.select(first < start, start - first, zero)
            image, count = first_image + n, minimum(emit, stop - first, images) - n
            entries, words = table + (first + n - start) * 8, a.places + place * (8 * PLACE_WORDS)
            i, j = emit.load(words, INT64), emit.load(words + 8, INT64)
            with emit.loop(0, a.num_taps) as tap:
                row, column = _pixel_of_tap(emit, a, tap, i, j)
                inside = row.ult(a.height) & column.ult(a.width)
                address = emit.select(inside, _pixel_address(a, image, row, column), a.zeros)
                step, row_of_table = emit.select(inside, a.image_bytes, zero), entries + tap * row_bytes
                with emit.loop(0, count) as m:
                    emit.store(address + m * step, row_of_table + m * 8)
            offset = image * strides[0] + i * strides[1] + j * strides[2]
            with emit.loop(0, count) as m:
                emit.store(offset + m * strides[0], entries + a.num_taps * row_bytes + m * 8)


def fill_lists(emit: Emitter, a: Arguments, lists: Value, counts: Value, windows: tuple[Value, Value]) -> None:
    """List for each tap of a chunk the pixels inside the image: lists (num_taps, chunk) of entries, and counts.

    With ``lists_zeros`` pixels outside are listed too, as zeros."""
    start, stop = windows
    zero = emit.constant(INT64, 0)
    with emit.loop(0, a.num_taps) as tap:
        emit.store(zero, counts + tap * 8)
    with emit.loop(start // a.grid_columns, (stop + a.grid_columns - 1) // a.grid_columns) as grid_row:
        first, image, i = grid_row * a.grid_columns, grid_row // a.grid_rows, grid_row % a.grid_rows
        first_column, last_column = _larger(emit, start - first, zero), minimum(emit, stop - first, a.grid_columns)
        with emit.loop(0, a.num_taps) as tap:
            row, column = _pixel_of_tap(emit, a, tap, i, zero)
            width = emit.select(row.ult(a.height), a.width, zero)
            with emit.if_then((width > 0) & (a.lists_zeros == 0)):
                # columns j inside have 0 <= column + column_step·j < width
                before, behind = _at_least_0(emit, zero - column), _at_least_0(emit, width - column)
                j = _larger(emit, (before + a.column_step - 1) // a.column_step, first_column)
                last = minimum(emit, (behind + a.column_step - 1) // a.column_step, last_column)
                pixel = _pixel_address(a, image, row, column + j * a.column_step)
                for n, entry in _new_entries(emit, a, lists, counts, tap, (first - start, j, last)):
                    emit.store(pixel + n * (a.column_step * a.pixel_bytes), entry)
            with emit.if_then(a.lists_zeros == 1):
                pixel = _pixel_address(a, image, row, column + first_column * a.column_step)
                for n, entry in _new_entries(emit, a, lists, counts, tap, (first - start, first_column, last_column)):
                    inside = (column + (first_column + n) * a.column_step).ult(width)
                    address = emit.select(inside, pixel + n * (a.column_step * a.pixel_bytes), a.zeros)
                    emit.store(address, entry)


def _new_entries(
    emit: Emitter, a: Arguments, lists: Value, counts: Value, tap: Value, columns: tuple[Value, Value, Value]
) -> Iterator[tuple[Value, Value]]:
    """Append entries for the windows of a row to a tap's list: number and address of each.

    ``columns`` are the number of the row's first window in the chunk, and the first column and the one behind the
    last. The caller stores the pixel's address."""
    before, first, last = columns
    length = emit.load(counts + tap * 8, INT64)
    entries = lists + (tap * a.chunk + length) * ENTRY_BYTES
    with emit.loop(0, last - first) as n:
        entry = entries + n * ENTRY_BYTES
        yield n, entry
        emit.store(before + first + n, entry + 8)
    emit.store(length + _at_least_0(emit, last - first), counts + tap * 8)


def _pixel_of_tap(emit: Emitter, a: Arguments, tap: Value, i: Value, j: Value) -> tuple[Value, Value]:
    """Row and column, maybe outside the image, of the pixel that the window (i, j) has for a tap."""
    words = a.taps + tap * (8 * TAP_WORDS)
    return i * a.row_step + emit.load(words, INT64), j * a.column_step + emit.load(words + 8, INT64)


def _pixel_address(a: Arguments, image: Value, row: Value, column: Value) -> Value:
    return a.x + (image * a.image_bytes + row * a.row_bytes + column * a.pixel_bytes)


def _larger(emit: Emitter, m: Value, n: Value) -> Value:
    return emit.select(m > n, m, n)


def _at_least_0(emit: Emitter, n: Value) -> Value:
    return _larger(emit, n, emit.constant(INT64, 0))


def load_address(emit: Emitter, address: Value) -> Value:
    return emit.load(address, ADDRESS)
