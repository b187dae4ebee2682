"""Δx of P(R(C(x, w) + b)), for ``conv_pool_backward.py``, which has laid out what is read here.

    Δx_(s+p)(t+q)r = Σ_ijk δ_ijk w_(P−p)(Q−q)rk                                      (2)

where δ_ijk is sent to the place (s, t): for each cell and place, a bit for each k says whether it is live there.
"""

from __future__ import annotations

from types import SimpleNamespace

from manualgrad.cpu.ir.tiles import clear, tiles
from manualgrad.cpu.ir.values import BYTE, INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

OUTPUTS_AT_ONCE = 32  # whose weights stay in the nearest cache while all windows add them to Δx; at most 64
TILE = 2, 5  # kernel rows and columns that Δx takes from them at once


def inputs(emit: Emitter, a: SimpleNamespace, image: Value, n: Value) -> None:
    """Δx of one image, from some k at a time, whose weights for the rows and columns of a tile then stay near."""
    line = a.width * a.x_channels * 4
    dx = a.dx + image * a.height * line
    clear(emit, dx, a.height * a.width * a.x_channels)
    with emit.loop(0, a.outputs, OUTPUTS_AT_ONCE) as k:
        here = n * a.cells * a.outputs + k
        _find_live(emit, a, here, a.outputs - k)
        for p, rows in tiles(emit, emit.number(INT64, 0), a.kernel_rows, TILE[0]):
            for q, columns in tiles(emit, emit.number(INT64, 0), a.kernel_columns, TILE[1]):
                with emit.loop(0, a.x_channels, emit.lanes) as r:
                    w = a.w + ((k * a.kernel_rows + p) * a.x_run + q * a.x_channels + r) * 4
                    to = dx + p * line + (q * a.x_channels + r) * 4
                    _input_tiles(emit, a, (rows, columns), a.delta + here * 4, w, to)


def _find_live(emit: Emitter, a: SimpleNamespace, here: Value, left: Value) -> None:
    """For each cell and place the bits of those k, from the first at ``here``, that are live there."""
    most = emit.number(INT64, OUTPUTS_AT_ONCE)
    with emit.loop(0, a.cells) as cell, emit.loop(0, 4) as place:
        bits = emit.variable(emit.number(INT64, 0))
        with emit.loop(0, emit.select(left < most, left, most), emit.lanes) as lane:
            places = emit.load(a.place + here + cell * a.outputs + lane, emit.bytes)
            live = places == emit.every_lane(emit.narrowed(place, BYTE))
            bits.set(bits.get() | (emit.bits(live) << lane))
        emit.store(bits.get(), a.live_at + (cell * 4 + place) * 8)


def _input_tiles(emit: Emitter, a: SimpleNamespace, tile: tuple[int, int], delta: Value, w: Value, to: Value) -> None:
    """Adds, for every cell, Σ δ_k w over the live k, for a tile of p and q and one vector of r: what goes to the two
    places side by side overlaps but for a column, and is added up before it is written."""
    rows, columns = tile
    pixel, line = a.x_channels * 4, a.width * a.x_channels * 4
    with emit.loop(0, a.rows) as i, emit.loop(0, a.columns) as j:
        cell = i * a.columns + j
        for s in range(2):
            totals = [[emit.variable(emit.number(emit.floats, 0)) for _ in range(columns + 1)] for _ in range(rows)]
            for t in range(2):
                bits = emit.load(a.live_at + (cell * 4 + (2 * s + t)) * 8, INT64)
                with emit.each_bit(bits) as k:
                    factor = emit.broadcast(delta + (cell * a.outputs + k) * 4)
                    source = w + k * a.kernel_rows * a.x_run * 4
                    for p in range(rows):
                        for q in range(columns):
                            weight = emit.load(source + a.x_run * (4 * p) + pixel * q, emit.floats)
                            total = totals[p][q + t]
                            total.set(emit.fma(weight, factor, total.get()))  # eq. (2)
            corner = to + (i * 2 + s) * line + j * 2 * pixel
            for p in range(rows):
                for q in range(columns + 1):
                    address = corner + line * p + pixel * q
                    emit.store(emit.load(address, emit.floats) + totals[p][q].get(), address)
