"""P(R(C(x, w) + b)) and its codes, as ``ops/conv_relu_pool.py`` defines them, for (1) with stride 1 and 2×2 windows.

    z_ijk    = b_k + Σ_pqr x_(i+p)(j+q)r w_(P−p)(Q−q)rk                          (1), (17)
    out_ijk  = max(0, z_(2i)(2j)k, z_(2i)(2j+1)k, z_(2i+1)(2j)k, z_(2i+1)(2j+1)k)    (4), (9)

z is never written down. One tile holds the four z of ``cells`` neighbouring windows for ``groups`` vectors of output
channels k in registers: each weight that is loaded serves every window, each x every k. In memory r follows on q, so
Σ_qr for one p is one run through x, and one through w, which comes as [p][q][r][k], already flipped.
"""

from __future__ import annotations

from types import SimpleNamespace

from manualgrad.cpu.ir.values import INT64, Value, Variable
from manualgrad.cpu.ir.vectors import Emitter
from manualgrad.cpu.pool_index import DEAD, ZERO

SUMMED = 128  # products at most that are added one after the other, or so many as one p has

ARGUMENTS = (
    "*x",  # [image][height][width][channels]
    "*w",  # [kernel_rows][run][outputs], where run counts (q, r)
    "*b",  # [outputs]
    "*out",  # [image][rows][columns][outputs]
    "*code",  # the same, bytes
    "pooled_rows",  # of all images together
    "share",  # how many of them a slot computes
    "height",
    "width",
    "channels",
    "kernel_rows",
    "run",
    "outputs",  # a multiple of the lanes
    "rows",
    "columns",
)


def forward(emit: Emitter) -> None:
    """One slot's share of the pooled rows."""
    a = emit.named(ARGUMENTS)
    first = a.slot * a.share
    end = first + a.share
    wide, narrow = (2, 4) if emit.lanes == 16 else (1, 2)  # cells of a tile: so many that the registers just hold it
    with emit.loop(first, emit.select(end < a.pooled_rows, end, a.pooled_rows)) as n:
        top = (n // a.rows) * a.height + (n % a.rows) * 2
        x, done = a.x + top * a.width * a.channels * 4, n * a.columns
        pairs = a.outputs // (2 * emit.lanes) * 2 * emit.lanes
        with emit.loop(0, pairs, 2 * emit.lanes) as k:
            _row(emit, a, x, done, k, groups=2, most=wide)
        with emit.loop(pairs, a.outputs, emit.lanes) as k:
            _row(emit, a, x, done, k, groups=1, most=narrow)


def _row(emit: Emitter, a: SimpleNamespace, x: Value, done: Value, k: Value, groups: int, most: int) -> None:
    """All windows of one row, for the output channels from k; ``done`` windows came before."""
    at = emit.number(k.raw.type, 0)
    for cells in dict.fromkeys((most, 1)):
        end = a.columns - a.columns % cells
        with emit.loop(at, end, cells) as j:
            _tile(emit, a, x + j * a.channels * 8, (done + j) * a.outputs + k, k, groups, cells)
        at = end


def _tile(emit: Emitter, a: SimpleNamespace, x: Value, to: Value, k: Value, groups: int, cells: int) -> None:
    """``cells`` windows, of which the first begins at ``x``, for ``groups`` vectors of channels from k."""
    biases = [emit.load(a.b + k * 4 + g * emit.bytes_of_vector, emit.floats) for g in range(groups)]
    z = [[[emit.variable(bias) for bias in biases] for _place in range(4)] for _cell in range(cells)]
    every = [variable for of_cell in z for of_place in of_cell for variable in of_place]
    lines = emit.select(a.run < SUMMED, emit.number(INT64, SUMMED) // a.run, emit.number(INT64, 1))
    with emit.each_part(a.kernel_rows, lines) as (p, after), emit.each_part(a.run, SUMMED) as (qr, end):
        before = [variable.get() for variable in every]  # set aside; a sum of sums rounds less than one long sum
        for variable in every:
            variable.set(emit.number(emit.floats, 0))
        _sums(emit, a, x, k, (p, after), (qr, end), z)
        for variable, others in zip(every, before, strict=True):
            variable.add(others)
    for cell in range(cells):
        for g in range(groups):
            out, code = maximum(emit, [z[cell][place][g].get() for place in range(4)])
            where = to + a.outputs * cell + g * emit.lanes
            emit.store(out, a.out + where * 4)
            emit.store(emit.narrowed(code, emit.bytes), a.code + where)


def _sums(
    emit: Emitter,
    a: SimpleNamespace,
    x: Value,
    k: Value,
    lines: tuple[Value, Value],
    run: tuple[Value, Value],
    z: list,
) -> None:
    """Adds to each z the products of some p and (q, r)."""
    pixel, line, cells, groups = a.channels * 4, a.width * a.channels * 4, len(z), len(z[0][0])
    with emit.loop(*lines) as p, emit.loop(*run) as qr:
        upper = x + p * line + qr * 4
        lower = upper + line
        w = a.w + ((p * a.run + qr) * a.outputs + k) * 4
        weights = [emit.load(w + g * emit.bytes_of_vector, emit.floats) for g in range(groups)]
        for column in range(2 * cells):
            for row, place in enumerate((upper, lower)):
                value = emit.broadcast(place + pixel * column)
                for g in range(groups):
                    _accumulate(emit, z[column // 2][2 * row + column % 2][g], value, weights[g])  # eq. (1)


def _accumulate(emit: Emitter, total: Variable, a: Value, b: Value) -> None:
    total.set(emit.fma(a, b, total.get()))


def maximum(emit: Emitter, z: list[Value]) -> tuple[Value, Value]:
    """The largest of four, or +0, and its code: the first of equals, the last of NaN."""
    best, code = z[0], emit.number(emit.ints, 0)
    for n in (1, 2, 3):
        wins = (z[n] > best) | z[n].is_nan()
        best = emit.select(wins, z[n], best)  # eq. (4)
        code = emit.select(wins, emit.number(emit.ints, n), code)
    alive = (best > 0) | best.is_nan()
    nothing = emit.select(z[0] == 0, emit.number(emit.ints, ZERO), emit.number(emit.ints, DEAD))
    zero = emit.number(emit.floats, 0)
    return emit.select(alive, best, zero), emit.select(alive, code, nothing)  # eq. (9)
