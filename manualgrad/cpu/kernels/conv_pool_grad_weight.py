"""The gradient of P(R(C(x, w) + b)) with respect to w, for ``conv_pool_backward.py``, which prepares its arguments.

    Δw_pqrk = Σ_ij δ_ijk x_(s+p)(t+q)r, (s, t) being the position that δ_ijk is sent to (3)

``grad_weight_over_inputs`` has vectors of kW·C_in numbers. For each output channel and position, a mask has one bit
per window, 1 if its δ is sent there. With few input channels most lanes would be unused: then
``grad_weight_over_outputs`` has vectors of output channels, and each lane looks up x at the position of its own δ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from manualgrad.cpu.conv_pool_scratch import KERNEL_COLUMNS_PER_TILE
from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter

WINDOWS_PER_MASK = 32  # bits of a lane


def grad_weight_over_inputs(emit: Emitter, a: Arguments, first: Value, images: Value) -> None:
    """Add the weight gradient of a block of images, for a mask of windows at a time, tile by tile."""
    pixel_bytes, row_bytes = a.in_channels_padded * 4, a.width * a.in_channels_padded * 4
    x = a.x + first * a.image_numel * 4
    with emit.loop(0, images) as n, emit.loop(0, a.out_height) as h_out, emit.loop(0, a.out_width) as w_out:
        offset = n * a.image_numel * 4 + h_out * 2 * row_bytes + w_out * 2 * pixel_bytes
        emit.store(offset, a.window_offsets + ((n * a.out_height + h_out) * a.out_width + w_out) * 8)
    with emit.block_loop(images * a.windows, WINDOWS_PER_MASK) as (start, stop):
        _store_window_masks(emit, a, start, stop)
        with emit.loop(0, a.out_channels_padded) as c_out:
            for kh, n, *tile in _tiles(emit, a.kernel_height, a.weight_row_numel):

                def products(add: Callable[[Value, Value], None], x: Value = x + kh * row_bytes + n * 4) -> None:
                    for position in range(4):
                        x_position = x + row_bytes * (position // 2) + pixel_bytes * (position % 2)
                        mask = emit.load(a.window_masks + (a.out_channels_padded * position + c_out) * 4, INT32)
                        with emit.bit_loop(emit.zext(mask, INT64)) as bit:
                            grad_z = emit.load_splat(a.grad_z + ((start + bit) * a.out_channels_padded + c_out) * 4)
                            add(
                                grad_z, x_position + emit.load(a.window_offsets + (start + bit) * 8, INT64)
                            )  # eq. (3)

                target = a.grad_weight + ((c_out * a.kernel_height + kh) * a.weight_row_numel + n) * 4
                _add_tile(emit, (tile[0], tile[1]), target, a.weight_row_numel * 4, products, row_bytes)


def _store_window_masks(emit: Emitter, a: Arguments, start: Value, stop: Value) -> None:
    """Store, for each position and output channel, the mask of the windows from ``start`` to ``stop``, at most 32."""
    zero = emit.constant(emit.int_vector, 0)
    with emit.loop(0, a.out_channels_padded, emit.lanes) as c_out:
        masks = [emit.variable(zero) for _ in range(4)]
        bit = emit.variable(emit.constant(emit.int_vector, 1))
        with emit.loop(start, stop) as window:
            positions = emit.load(a.positions + window * a.out_channels_padded + c_out, emit.byte_vector)
            for position, mask in enumerate(masks):
                mask.set(mask.get() | emit.select(positions == position, bit.get(), zero))
            bit.set(bit.get() << 1)
        for position, mask in enumerate(masks):
            emit.store(mask.get(), a.window_masks + (a.out_channels_padded * position + c_out) * 4)


def _tiles(emit: Emitter, rows: Value, row_numel: Value) -> Iterator[tuple[Value, Value, int, int]]:
    """Cover rows × row_numel floats with tiles: the first row and float of each tile, and its rows and vectors."""
    start = emit.constant(INT64, 0)
    for height, widths in _tile_sizes(emit):
        stop = rows - (rows - start) % height
        with emit.loop(start, stop, height) as row:
            first = emit.constant(INT64, 0)
            for width in widths:
                end = row_numel - (row_numel - first) % (width * emit.lanes)
                with emit.loop(first, end, width * emit.lanes) as n:
                    yield row, n, height, width
                first = end
        start = stop


def _tile_sizes(emit: Emitter) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Rows of a tile, and its vectors: as many as the registers hold, which have a factor too."""
    if emit.lanes == 16:
        return (5, (5, 1)), (3, (6, 3, 1)), (1, (5, 1))
    return (5, (2, 1)), (3, (4, 1)), (1, (2, 1))


def _add_tile(
    emit: Emitter, tile: tuple[int, int], target: Value, target_row_bytes: Value,
    products: Callable[[Callable[[Value, Value], None]], None], x_row_bytes: Value,
) -> None:  # fmt: skip
    """Add a sum of products to the tile at ``target``.

    ``products`` calls its argument with each factor, in every lane, and with the address of the tile of x that it
    multiplies."""
    elements = [(row, column * emit.vector_bytes) for row in range(tile[0]) for column in range(tile[1])]
    totals = [emit.variable(emit.constant(emit.float_vector, 0)) for _ in elements]

    def add(factor: Value, x: Value) -> None:
        for total, (row, offset) in zip(totals, elements, strict=True):
            vector = emit.load(x + x_row_bytes * row + offset, emit.float_vector)
            total.set(emit.fma(vector, factor, total.get()))

    products(add)
    for total, (row, offset) in zip(totals, elements, strict=True):
        address = target + target_row_bytes * row + offset
        emit.store(emit.load(address, emit.float_vector) + total.get(), address)  # a sum of sums rounds less


def grad_weight_over_outputs(emit: Emitter, a: Arguments, image: Value, n: Value) -> None:
    """Add the weight gradient of one image, the block's number ``n``, for a tile of the kernel at a time."""
    channel_numel = a.height * a.width
    x = emit.variable(a.x + image * a.image_numel * 4)
    with emit.if_then(image == a.batch_size - 1):  # no memory need follow the last image: its copy has READ_SLACK
        with emit.loop(0, a.image_numel) as i:
            emit.store(emit.load(x.get() + i * 4, FLOAT), a.image_copy + i * 4)
        x.set(a.image_copy)
    tile_rows = 5 if emit.lanes == 16 else 1
    with emit.loop(0, a.in_channels) as c_in, emit.loop(0, a.padded_kernel_width, KERNEL_COLUMNS_PER_TILE) as kw:
        for rows in dict.fromkeys((tile_rows, 1)):
            full = a.kernel_height - a.kernel_height % tile_rows
            bounds = (emit.constant(INT64, 0), full) if rows == tile_rows else (full, a.kernel_height)
            with emit.loop(*bounds, rows) as kh, emit.loop(0, a.out_channels_padded, emit.lanes) as c_out:
                row = (c_in * a.kernel_height + kh) * a.padded_kernel_width
                target = a.grad_weight + ((row + kw) * a.out_channels_padded + c_out) * 4
                source = x.get() + (c_in * channel_numel + kh * a.width + kw) * 4
                _add_lookup_tile(emit, a, rows, target, source, n * a.windows * a.out_channels_padded + c_out)


def _add_lookup_tile(emit: Emitter, a: Arguments, rows: int, target: Value, x: Value, offset: Value) -> None:
    """Add grad_z times x to ``target``, for all windows, some kernel rows, and one vector of output channels, whose
    grad_z begin at ``offset``."""
    elements = [(kh, kw) for kh in range(rows) for kw in range(KERNEL_COLUMNS_PER_TILE)]
    addresses = [target + (a.padded_kernel_width * kh + kw) * a.out_channels_padded * 4 for kh, kw in elements]
    totals = [emit.variable(emit.constant(emit.float_vector, 0)) for _ in elements]
    row_bytes = a.width * 4
    with emit.loop(0, a.out_height) as h_out, emit.loop(0, a.out_width) as w_out:
        window = offset + (h_out * a.out_width + w_out) * a.out_channels_padded
        grad_z = emit.load(a.grad_z + window * 4, emit.float_vector)
        position = emit.zext(emit.load(a.positions + window, emit.byte_vector), emit.int_vector)
        column, is_lower = position & 1, position > 1
        corner = x + (h_out * 2 * a.width + w_out * 2) * 4
        for total, (kh, kw) in zip(totals, elements, strict=True):
            upper = corner + row_bytes * kh
            values = emit.permute(upper, upper + row_bytes, column + kw, is_lower)
            total.set(emit.fma(values, grad_z, total.get()))  # eq. (3)
    for total, address in zip(totals, addresses, strict=True):
        emit.store(emit.load(address, emit.float_vector) + total.get(), address)
