"""P(R(C(x, w) + b)) and its pooling indices, as ``ops/conv_relu_pool.py`` defines them, for (1) with stride 1 and
windows of 2×2.

    z_ijk    = b_k + Σ_pqr x_(i+p)(j+q)r w_(P−p)(Q−q)rk                          (1), (17)
    out_ijk  = max(0, z_(2i)(2j)k, z_(2i)(2j+1)k, z_(2i+1)(2j)k, z_(2i+1)(2j+1)k)    (4), (9)

z is not stored. The registers hold one tile: the four z of some neighbouring windows, for one or two vectors of
output channels. Each loaded weight is used for all windows of the tile, each loaded x for all its output channels.

A kernel row is one run of kW·C_in floats in x. A task computes ``share`` rows of windows.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import INT64, Value, Variable
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel
from manualgrad.pool_index import AT_ZERO, INACTIVE

BLOCK_K = 128  # products that are summed before they are added to z, or one kernel row if C_in·kW is larger


@kernel(
    x=POINTER,  # (N, H, W, C_in)
    packed_weight=POINTER,  # (kH, kW·C_in, padded C_out), flipped
    bias=POINTER,  # (padded C_out)
    out=POINTER,  # (N, H_out, W_out, padded C_out)
    pool_index=POINTER,  # the same, bytes
    window_rows=INT,  # N·H_out
    share=INT,  # rows of windows per task
    height=INT,
    width=INT,
    in_channels=INT,
    kernel_height=INT,
    kernel_row_numel=INT,  # kW·C_in
    out_channels_padded=INT,  # a multiple of the lanes
    out_height=INT,
    out_width=INT,
)
def conv_pool_forward(emit: Emitter, a: Arguments) -> None:
    """Compute this task's rows of windows."""
    wide, narrow = (2, 4) if emit.lanes == 16 else (1, 2)  # windows of a tile: as many as the registers hold
    with emit.loop(*task_range(emit, a, a.window_rows)) as row:
        first_x_row = (row // a.out_height) * a.height + (row % a.out_height) * 2
        x, window = a.x + first_x_row * a.width * a.in_channels * 4, row * a.out_width
        paired = a.out_channels_padded // (2 * emit.lanes) * 2 * emit.lanes
        with emit.loop(0, paired, 2 * emit.lanes) as c_out:
            _row(emit, a, x, window, c_out, vectors=2, tile_windows=wide)
        with emit.loop(paired, a.out_channels_padded, emit.lanes) as c_out:
            _row(emit, a, x, window, c_out, vectors=1, tile_windows=narrow)


def _row(emit: Emitter, a: Arguments, x: Value, window: Value, c_out: Value, vectors: int, tile_windows: int) -> None:
    """Compute a row of windows, the first of which is number ``window``, for ``vectors`` of output channels."""
    start = emit.constant(c_out.raw.type, 0)
    for windows in dict.fromkeys((tile_windows, 1)):
        stop = a.out_width - a.out_width % windows
        with emit.loop(start, stop, windows) as w_out:
            out_offset = (window + w_out) * a.out_channels_padded + c_out
            _tile(emit, a, x + w_out * a.in_channels * 8, out_offset, c_out, vectors, windows)
        start = stop


def _tile(emit: Emitter, a: Arguments, x: Value, out_offset: Value, c_out: Value, vectors: int, windows: int) -> None:
    """Compute ``windows`` neighbours, the first of which begins at ``x``, for ``vectors`` of output channels."""
    biases = [emit.load(a.bias + c_out * 4 + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
    z = [[[emit.variable(bias) for bias in biases] for _position in range(4)] for _window in range(windows)]
    variables = [variable for of_window in z for of_position in of_window for variable in of_position]
    one_row = emit.constant(INT64, 1)
    rows = emit.select(a.kernel_row_numel < BLOCK_K, emit.constant(INT64, BLOCK_K) // a.kernel_row_numel, one_row)
    with (
        emit.block_loop(a.kernel_height, rows) as kernel_rows,
        emit.block_loop(a.kernel_row_numel, BLOCK_K) as row_numbers,
    ):
        totals = [variable.get() for variable in variables]  # a sum of blocks rounds less than one long sum
        for variable in variables:
            variable.set(emit.constant(emit.float_vector, 0))
        _add_products(emit, a, x, c_out, kernel_rows, row_numbers, z)
        for variable, total in zip(variables, totals, strict=True):
            variable.add(total)
    for window in range(windows):
        for v in range(vectors):
            out, pool_index = relu_max(emit, [z[window][position][v].get() for position in range(4)])
            offset = out_offset + a.out_channels_padded * window + v * emit.lanes
            emit.store(out, a.out + offset * 4)
            emit.store(emit.trunc(pool_index, emit.byte_vector), a.pool_index + offset)


def _add_products(
    emit: Emitter,
    a: Arguments,
    x: Value,
    c_out: Value,
    kernel_rows: tuple[Value, Value],
    row_numbers: tuple[Value, Value],
    z: list[list[list[Variable]]],
) -> None:
    """Add to each z the products of some kernel rows, and of some of the kW·C_in numbers in each."""
    pixel_bytes, row_bytes = a.in_channels * 4, a.width * a.in_channels * 4
    windows, vectors = len(z), len(z[0][0])
    with emit.loop(*kernel_rows) as kh, emit.loop(*row_numbers) as n:
        upper = x + kh * row_bytes + n * 4
        lower = upper + row_bytes
        weight = a.packed_weight + ((kh * a.kernel_row_numel + n) * a.out_channels_padded + c_out) * 4
        weights = [emit.load(weight + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
        for column in range(2 * windows):
            for row, address in enumerate((upper, lower)):
                value = emit.load_splat(address + pixel_bytes * column)
                for v in range(vectors):
                    total = z[column // 2][2 * row + column % 2][v]
                    total.set(emit.fma(value, weights[v], total.get()))  # eq. (1)


def relu_max(emit: Emitter, z: list[Value]) -> tuple[Value, Value]:
    """Return the maximum of four z and 0, and its pooling index: the first of equals, the last of several NaNs."""
    largest, position = z[0], emit.constant(emit.int_vector, 0)
    for n in (1, 2, 3):
        is_larger = (z[n] > largest) | z[n].is_nan()
        largest = emit.select(is_larger, z[n], largest)  # eq. (4)
        position = emit.select(is_larger, emit.constant(emit.int_vector, n), position)
    is_active = (largest > 0) | largest.is_nan()
    at_zero, inactive = emit.constant(emit.int_vector, AT_ZERO), emit.constant(emit.int_vector, INACTIVE)
    not_positive = emit.select(z[0] == 0, at_zero, inactive)
    zero = emit.constant(emit.float_vector, 0)
    return emit.select(is_active, largest, zero), emit.select(is_active, position, not_positive)  # eq. (9)
