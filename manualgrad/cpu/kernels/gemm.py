"""Matrix products of the dense layer, in two kernels.

    out_bj = b_j + Σ_i x_bi w_ji          ``gemm_nt``: D of (6) with (17), w being (J, I) as a layer has it
    out_ri = Σ_n s_rn v_ni                ``gemm_strided``, which is

        ∂J/∂x_bi = Σ_j g_bj w_ji          (7) for s = g and v = w
        ∂J/∂w_ji = Σ_b g_bj x_bi          (8) for s = gᵀ and v = x
        ∂J/∂b_j  = Σ_b g_bj               (17) for s = 1 and v = g

The registers hold the sums of a tile of the result. ``gemm_nt`` has one sum per lane, and adds the lanes at the end.
``gemm_strided`` adds its sums to the result after every BLOCK_K terms, since a sum of sums rounds less. A task
computes ``share`` rows of the result.
"""

from __future__ import annotations

from llvmlite import ir

from manualgrad.cpu.ir.tiles import task_range, tiles
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel

BLOCK_K = 128


@kernel(
    x=POINTER,  # (rows, in_features)
    weight=POINTER,  # (out_features, in_features)
    bias=POINTER,  # (out_features)
    out=POINTER,  # (rows, out_features)
    rows=INT,
    share=INT,  # rows per task
    in_features=INT,
    out_features=INT,
)
def gemm_nt(emit: Emitter, a: Arguments) -> None:
    """Compute this task's rows of x·weightᵀ + bias."""
    tile_rows, tile_columns = (4, 6) if emit.lanes == 16 else (2, 4)  # as many as the registers hold
    for column, columns in tiles(emit, emit.constant(INT64, 0), a.out_features, tile_columns):
        for row, rows in tiles(emit, *task_range(emit, a, a.rows), tile_rows):
            _nt_tile(emit, a, row, column, rows, columns)


def _nt_tile(emit: Emitter, a: Arguments, row: Value, column: Value, rows: int, columns: int) -> None:
    elements = [(r, c) for r in range(rows) for c in range(columns)]
    x, weight = a.x + row * a.in_features * 4, a.weight + column * a.in_features * 4
    full = a.in_features - a.in_features % emit.lanes
    totals = [emit.load(a.bias + (column + c) * 4, FLOAT) for _, c in elements]  # eq. (17)
    for type_, start, stop, step in ((emit.float_vector, 0, full, emit.lanes), (FLOAT, full, a.in_features, 1)):
        sums = [emit.variable(emit.constant(type_, 0)) for _ in elements]
        with emit.loop(start, stop, step) as i:
            xs = [emit.load(x + (a.in_features * r + i) * 4, type_) for r in range(rows)]
            weights = [emit.load(weight + (a.in_features * c + i) * 4, type_) for c in range(columns)]
            for element_sum, (r, c) in zip(sums, elements, strict=True):
                element_sum.set(emit.fma(xs[r], weights[c], element_sum.get()))  # eq. (6)
        values = [s.get() if type_ is FLOAT else emit.reduce_add(s.get()) for s in sums]
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    for total, (r, c) in zip(totals, elements, strict=True):
        emit.store(total, a.out + ((row + r) * a.out_features + column + c) * 4)


@kernel(
    lhs=POINTER,  # (rows, inner_size), of any strides
    row_stride=INT,  # of lhs, in floats
    inner_stride=INT,  # of lhs, in floats
    rhs=POINTER,  # (inner_size, columns)
    out=POINTER,  # (rows, columns)
    rows=INT,
    share=INT,  # rows per task
    inner_size=INT,
    columns=INT,
)
def gemm_strided(emit: Emitter, a: Arguments) -> None:
    """Compute this task's rows of lhs·rhs."""
    tile_rows, tile_vectors = (8, 3) if emit.lanes == 16 else (4, 3)  # as many as the registers hold
    wide_end, vector_end = (a.columns - a.columns % (vectors * emit.lanes) for vectors in (tile_vectors, 1))
    for start, stop, vectors, type_ in (
        (0, wide_end, tile_vectors, emit.float_vector),
        (wide_end, vector_end, 1, emit.float_vector),
        (vector_end, a.columns, 1, FLOAT),
    ):
        step = vectors * emit.lanes if type_ is emit.float_vector else 1
        with emit.loop(start, stop, step) as column:
            for row, rows in tiles(emit, *task_range(emit, a, a.rows), tile_rows):
                _strided_tile(emit, a, row, column, (rows, vectors), type_)


def _strided_tile(
    emit: Emitter, a: Arguments, row: Value, column: Value, tile: tuple[int, int], type_: ir.Type
) -> None:
    rows, vectors = tile
    elements = [(r, v * emit.vector_bytes) for r in range(rows) for v in range(vectors)]
    totals = [emit.variable(emit.constant(type_, 0)) for _ in elements]
    outs = [a.out + ((row + r) * a.columns + column) * 4 + offset for r, offset in elements]
    for out in outs:
        emit.store(emit.constant(type_, 0), out)
    with emit.block_loop(a.inner_size, BLOCK_K) as block:
        for total in totals:
            total.set(emit.constant(type_, 0))
        with emit.loop(*block) as n:
            lhs = a.lhs + (n * a.inner_stride + row * a.row_stride) * 4
            rhs = a.rhs + (n * a.columns + column) * 4
            factors = [emit.load(lhs + a.row_stride * (4 * r), FLOAT) for r in range(rows)]
            factors = factors if type_ is FLOAT else [emit.splat(factor) for factor in factors]
            values = [emit.load(rhs + v * emit.vector_bytes, type_) for v in range(vectors)]
            for i, total in enumerate(totals):
                total.set(emit.fma(factors[i // vectors], values[i % vectors], total.get()))  # eq. (7), (8)
        for total, out in zip(totals, outs, strict=True):
            emit.store(emit.load(out, type_) + total.get(), out)
