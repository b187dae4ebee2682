"""Products of matrices for the dense layer, in two kernels: rows with rows, and rows with columns.

    out_bj = b_j + Σ_i x_bi w_ji          ``gemm_nt``: D of (6) with (17), w being (J, I) as a layer has it
    out_ri = Σ_n s_rn v_ni                ``gemm_strided``, which is

        ∂J/∂x_bi = Σ_j g_bj w_ji          (7) for s = g and v = w
        ∂J/∂w_ji = Σ_b g_bj x_bi          (8) for s = gᵀ and v = x
        ∂J/∂b_j  = Σ_b g_bj               (17) for s = 1 and v = g

Sums stay in registers for a tile of the result, and of many terms they are sums of sums, which rounds less.
"""

from __future__ import annotations

from types import SimpleNamespace

from llvmlite import ir

from manualgrad.cpu.ir.tiles import share, tiles
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

SUMMED = 128  # terms at most that are added one after the other
ROW_PRODUCTS = (
    "*x",  # [row][inputs]
    "*w",  # [output][inputs]
    "*b",  # [output]
    "*out",  # [row][outputs]
    "rows",
    "share",  # how many of them a slot computes
    "inputs",
    "outputs",
)
COLUMN_PRODUCTS = (
    "*s",  # where r and n are 0
    "step_r",  # floats in s from one r to the next
    "step_n",  # and from one n
    "*v",  # [n][columns]
    "*out",  # [row][columns]
    "rows",
    "share",  # how many of them a slot computes
    "terms",  # how many n there are
    "columns",
)


def gemm_nt(emit: Emitter) -> None:
    """One slot's share of the rows."""
    a = emit.named(ROW_PRODUCTS)
    most = (4, 6) if emit.lanes == 16 else (2, 4)  # rows and outputs: as many as the registers hold
    for j, outputs in tiles(emit, emit.number(INT64, 0), a.outputs, most[1]):
        for row, rows in tiles(emit, *share(emit, a), most[0]):
            _row_tile(emit, a, row, j, rows, outputs)


def _row_tile(emit: Emitter, a: SimpleNamespace, row: Value, j: Value, rows: int, outputs: int) -> None:
    places = [(r, o) for r in range(rows) for o in range(outputs)]
    x, w = a.x + row * a.inputs * 4, a.w + j * a.inputs * 4
    whole = a.inputs - a.inputs % emit.lanes
    sums = [emit.load(a.b + (j + o) * 4, FLOAT) for _, o in places]  # eq. (17)
    for type_, start, end, step in ((emit.floats, 0, whole, emit.lanes), (FLOAT, whole, a.inputs, 1)):
        totals = [emit.variable(emit.number(type_, 0)) for _ in places]
        with emit.loop(start, end, step) as i:
            xs = [emit.load(x + (a.inputs * r + i) * 4, type_) for r in range(rows)]
            ws = [emit.load(w + (a.inputs * o + i) * 4, type_) for o in range(outputs)]
            for total, (r, o) in zip(totals, places, strict=True):
                total.set(emit.fma(xs[r], ws[o], total.get()))  # eq. (6)
        found = [total.get() if type_ is FLOAT else emit.sum_lanes(total.get()) for total in totals]
        sums = [before + value for before, value in zip(sums, found, strict=True)]
    for value, (r, o) in zip(sums, places, strict=True):
        emit.store(value, a.out + ((row + r) * a.outputs + j + o) * 4)


def gemm_strided(emit: Emitter) -> None:
    """One slot's share of the rows."""
    a = emit.named(COLUMN_PRODUCTS)
    rows, vectors = (8, 3) if emit.lanes == 16 else (4, 3)  # as many as the registers hold
    wide, whole = (a.columns - a.columns % (n * emit.lanes) for n in (vectors, 1))
    parts = ((0, wide, vectors, emit.floats), (wide, whole, 1, emit.floats), (whole, a.columns, 1, FLOAT))
    for start, end, width, type_ in parts:
        step = width * emit.lanes if type_ is emit.floats else 1
        with emit.loop(start, end, step) as column:
            for row, height in tiles(emit, *share(emit, a), rows):
                _column_tile(emit, a, row, column, (height, width), type_)


def _column_tile(
    emit: Emitter, a: SimpleNamespace, row: Value, column: Value, tile: tuple[int, int], type_: ir.Type
) -> None:
    places = [(r, c * emit.bytes_of_vector) for r in range(tile[0]) for c in range(tile[1])]
    totals = [emit.variable(emit.number(type_, 0)) for _ in places]
    outs = [a.out + ((row + r) * a.columns + column) * 4 + c for r, c in places]
    for out in outs:
        emit.store(emit.number(type_, 0), out)
    with emit.each_part(a.terms, SUMMED) as part:
        for total in totals:
            total.set(emit.number(type_, 0))
        with emit.loop(*part) as n:
            s, v = a.s + (n * a.step_n + row * a.step_r) * 4, a.v + (n * a.columns + column) * 4
            factors = [emit.load(s + a.step_r * (4 * r), FLOAT) for r in range(tile[0])]
            factors = factors if type_ is FLOAT else [emit.every_lane(factor) for factor in factors]
            vectors = [emit.load(v + c * emit.bytes_of_vector, type_) for c in range(tile[1])]
            for n, total in enumerate(totals):
                total.set(emit.fma(factors[n // tile[1]], vectors[n % tile[1]], total.get()))  # eq. (7), (8)
        for total, out in zip(totals, outs, strict=True):
            emit.store(emit.load(out, type_) + total.get(), out)
