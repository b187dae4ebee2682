"""The gradient of P(R(C(x, w) + b)) with respect to x, for ``conv_pool_backward.py``, which prepares its arguments.

    Δx_(s+p)(t+q)r = Σ_ijk δ_ijk w_(P−p)(Q−q)rk                                      (2)

where δ_ijk is sent to the position (s, t) of its window. For each window and position, a mask has one bit per output
channel, 1 if its δ is sent there. The registers hold the sums of a tile of kernel rows and columns, for one vector of
input channels.
"""

from __future__ import annotations

from itertools import product

from manualgrad.cpu.ir.tiles import clear, tiles
from manualgrad.cpu.ir.values import BYTE, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter

CHANNELS_PER_BLOCK = 32  # output channels whose weights stay in the L1 cache while all windows use them; at most 64
TILES = (2, 5), (3, 3)  # kernel rows and columns of a tile: columns are covered by the first, then by the second


def grad_input(emit: Emitter, a: Arguments, image: Value, n: Value) -> None:
    """Compute the input gradient of one image, the block's number ``n``, one block of output channels at a time."""
    row_bytes = a.width * a.in_channels_padded * 4
    image_grad = a.grad_input + image * a.height * row_bytes
    clear(emit, image_grad, a.height * a.width * a.in_channels_padded)
    zero = emit.constant(INT64, 0)
    with emit.loop(0, a.out_channels_padded, CHANNELS_PER_BLOCK) as c_out:
        offset = n * a.windows * a.out_channels_padded + c_out
        _store_channel_masks(emit, a, offset, a.out_channels_padded - c_out)
        wide = a.kernel_width - a.kernel_width % TILES[0][1]
        for (tile_rows, tile_columns), first, stop in zip(TILES, (zero, wide), (wide, a.kernel_width), strict=True):
            for kw, columns in tiles(emit, first, stop, tile_columns):
                for kh, rows in tiles(emit, zero, a.kernel_height, tile_rows):
                    _each_vector(emit, a, (c_out, kh, kw), (rows, columns), offset, image_grad)


def _each_vector(
    emit: Emitter, a: Arguments, origin: tuple[Value, Value, Value], tile: tuple[int, int], offset: Value,
    image_grad: Value,
) -> None:  # fmt: skip
    """Add a tile of the kernel, for one vector of input channels after the other."""
    (c_out, kh, kw), row_bytes = origin, a.width * a.in_channels_padded * 4
    with emit.loop(0, a.in_channels_padded, emit.lanes) as c_in:
        row = (c_out * a.kernel_height + kh) * a.packed_row_numel
        weight = a.packed_weight + (row + kw * a.weight_numel + c_in) * 4
        target = image_grad + kh * row_bytes + (kw * a.in_channels_padded + c_in) * 4
        _add_tile(emit, a, tile, a.grad_z + offset * 4, weight, target)


def _store_channel_masks(emit: Emitter, a: Arguments, offset: Value, channels_left: Value) -> None:
    """Store, for each window and position, the mask of a block of output channels, the first of which is at
    ``offset``."""
    most = emit.constant(INT64, CHANNELS_PER_BLOCK)
    with emit.loop(0, a.windows) as window, emit.loop(0, 4) as position:
        mask = emit.variable(emit.constant(INT64, 0))
        with emit.loop(0, emit.select(channels_left < most, channels_left, most), emit.lanes) as c_out:
            positions = emit.load(a.positions + offset + window * a.out_channels_padded + c_out, emit.byte_vector)
            is_here = positions == emit.splat(emit.trunc(position, BYTE))
            mask.set(mask.get() | (emit.bitmask(is_here) << c_out))
        emit.store(mask.get(), a.channel_masks + (window * 4 + position) * 8)


def _add_tile(
    emit: Emitter, a: Arguments, tile: tuple[int, int], grad_z: Value, weight: Value, target: Value
) -> None:
    """Add grad_z times weight to ``target``, for all windows, a tile of the kernel and a vector of input channels.

    The positions (s, t) of a window have tiles that overlap. With AVX-512 the registers hold the sums of all four,
    with AVX2 those of one s."""
    for upper_and_lower in ((0, 1),) if emit.lanes == 16 else ((0,), (1,)):
        with emit.loop(0, a.out_height) as h_out:
            _add_row(emit, a, tile, upper_and_lower, h_out, grad_z, weight, target)


def _add_row(
    emit: Emitter, a: Arguments, tile: tuple[int, int], positions: tuple[int, ...], h_out: Value, grad_z: Value,
    weight: Value, target: Value,
) -> None:  # fmt: skip
    """Add a tile for a row of windows, and those of their gradients whose s is in ``positions``.

    The tile of the next window begins two columns behind: sums of the other columns stay in the registers."""
    (rows, columns), weight_bytes = tile, a.weight_numel * 4
    pixel_bytes, row_bytes = a.in_channels_padded * 4, a.width * a.in_channels_padded * 4
    zero, first = emit.constant(emit.float_vector, 0), positions[0]
    totals = [[emit.variable(zero) for _ in range(columns + 1)] for _ in range(rows + len(positions) - 1)]
    corner = target + (h_out * 2 + first) * row_bytes

    def store_columns(w_out: Value, count: int) -> None:
        """Add the first ``count`` columns of the sums to the image, and shift the others there."""
        for n, row in enumerate(totals):
            address = corner + row_bytes * n + w_out * (2 * pixel_bytes)
            for kw, total in enumerate(row[:count]):
                emit.store(
                    emit.load(address + pixel_bytes * kw, emit.float_vector) + total.get(), address + pixel_bytes * kw
                )
            shifted = [total.get() for total in row[count:]] + [zero] * count
            for total, value in zip(row, shifted, strict=True):
                total.set(value)

    with emit.loop(0, a.out_width) as w_out:
        window = h_out * a.out_width + w_out
        for s, t in product(positions, range(2)):
            mask = emit.load(a.channel_masks + (window * 4 + (2 * s + t)) * 8, INT64)
            with emit.bit_loop(mask) as c_out:
                factor = emit.load_splat(grad_z + (window * a.out_channels_padded + c_out) * 4)
                channel_weight = weight + c_out * a.kernel_height * a.packed_row_numel * 4
                for kh, kw in product(range(rows), range(columns)):
                    address = channel_weight + a.packed_row_numel * (4 * kh) + weight_bytes * kw
                    total = totals[kh + s - first][kw + t]
                    total.set(emit.fma(emit.load(address, emit.float_vector), factor, total.get()))  # eq. (2)
        store_columns(w_out, 2)
    store_columns(a.out_width, columns - 1)
