"""Δw of P(R(C(x, w) + b)), for ``conv_pool_backward.py``, which has laid out what is read here.

    Δw_pqrk = Σ_ij δ_ijk x_(s+p)(t+q)r, (s, t) being the place that δ_ijk is sent to (3)

For each k and place bits say in which cells it is live (``weights_of_many``). Where x has few channels r, a vector of
k picks from the 2×2 shifted images instead (``weights_of_few``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

FEW_COLUMNS = 5  # kernel columns that ``weights_of_few`` sums at once
CELLS = 32  # whose bits a lane holds
SLACK = 8  # floats beyond an image that it may read


def _tiles(emit: Emitter, rows: Value, run: Value, most: tuple[int, int]) -> Iterator[tuple[Value, Value, int, int]]:
    """Covers rows × run floats by tiles: (first row, first float, rows, vectors), as large as ``most`` and then of
    1."""
    vector = emit.lanes
    for height in dict.fromkeys((most[0], 1)):
        whole = rows - rows % most[0]
        with emit.loop(0 if height == most[0] else whole, whole if height == most[0] else rows, height) as p:
            for width in dict.fromkeys((most[1], 1)):
                full = run - run % (most[1] * vector)
                start, stop = (0, full) if width == most[1] else (full, run)
                with emit.loop(start, stop, width * vector) as v:
                    yield p, v, height, width


def _largest_tile(emit: Emitter) -> tuple[int, int]:
    """Rows and vectors that the registers hold: 25 of 32, or 10 of 16."""
    return (5, 5) if emit.lanes == 16 else (5, 2)


def _tile_sum(
    emit: Emitter, tile: tuple[int, int], to: Value, line: Value,
    terms: Callable[[Callable[[Value, Value], None]], None], step: Value,
) -> None:  # fmt: skip
    """Adds Σ s·v to a tile that begins at ``to`` and has rows ``line`` bytes apart; ``terms`` calls what it is given
    with each s, in every lane, and with the address of v, whose rows are ``step`` bytes apart."""
    places = [(r, c * emit.bytes_of_vector) for r in range(tile[0]) for c in range(tile[1])]
    totals = [emit.variable(emit.number(emit.floats, 0)) for _ in places]

    def add(s: Value, v: Value) -> None:
        for total, (r, c) in zip(totals, places, strict=True):
            total.set(emit.fma(emit.load(v + step * r + c, emit.floats), s, total.get()))

    terms(add)
    for total, (r, c) in zip(totals, places, strict=True):
        address = to + line * r + c
        emit.store(emit.load(address, emit.floats) + total.get(), address)  # a sum of sums rounds less


def weights_of_many(emit: Emitter, a: SimpleNamespace, first: Value, images: Value) -> None:
    """Δw from some images: for each k Σ δ x over the places where it is live, some cells at a time, tile by tile."""
    pixel, line = a.channels * 4, a.width * a.channels * 4
    x = a.x + first * a.image * 4
    with emit.loop(0, images) as n, emit.loop(0, a.rows) as i, emit.loop(0, a.columns) as j:
        offset = n * a.image * 4 + i * 2 * line + j * 2 * pixel
        emit.store(offset, a.cell_at + ((n * a.rows + i) * a.columns + j) * 8)
    with emit.each_part(images * a.cells, CELLS) as (start, end):
        _find_live(emit, a, start, end)
        with emit.loop(0, a.outputs) as k:
            for p, v, *tile in _tiles(emit, a.kernel_rows, a.run, _largest_tile(emit)):

                def terms(add, source=x + p * line + v * 4):
                    for place in range(4):
                        there = source + line * (place // 2) + pixel * (place % 2)
                        bits = emit.load(a.cells_live_at + (a.outputs * place + k) * 4, INT32)
                        with emit.each_bit(emit.widened(bits, INT64)) as n:
                            delta = emit.broadcast(a.delta + ((start + n) * a.outputs + k) * 4)
                            add(delta, there + emit.load(a.cell_at + (start + n) * 8, INT64))  # eq. (3)

                to = a.dw + ((k * a.kernel_rows + p) * a.run + v) * 4
                _tile_sum(emit, tile, to, a.run * 4, terms, line)


def _find_live(emit: Emitter, a: SimpleNamespace, start: Value, end: Value) -> None:
    """For each place and k a bit for each of some cells, 32 at most: whether k is live there."""
    nothing = emit.number(emit.ints, 0)
    with emit.loop(0, a.outputs, emit.lanes) as k:
        live = [emit.variable(nothing) for _ in range(4)]
        bit = emit.variable(emit.number(emit.ints, 1))
        with emit.loop(start, end) as cell:
            goes_to = emit.load(a.place + cell * a.outputs + k, emit.bytes)
            for place, bits in enumerate(live):
                bits.set(bits.get() | emit.select(goes_to == place, bit.get(), nothing))
            bit.set(bit.get() << 1)
        for place, bits in enumerate(live):
            emit.store(bits.get(), a.cells_live_at + (a.outputs * place + k) * 4)


def weights_of_few(emit: Emitter, a: SimpleNamespace, image: Value, n: Value) -> None:
    """Δw from one image: a vector of δ_k times the x that each of its lanes picks by its own place in the window."""
    plane = a.height * a.width
    x = emit.variable(a.x + image * a.image * 4)
    with emit.when(image == a.images - 1):  # behind the last there is nothing: a copy has slack behind it
        with emit.loop(0, a.image) as f:
            emit.store(emit.load(x.get() + f * 4, FLOAT), a.copy + f * 4)
        x.set(a.copy)
    most = 5 if emit.lanes == 16 else 1
    with emit.loop(0, a.channels) as r, emit.loop(0, a.few_run, FEW_COLUMNS) as q:
        for height in dict.fromkeys((most, 1)):
            whole = a.kernel_rows - a.kernel_rows % most
            bounds = (emit.number(INT64, 0), whole) if height == most else (whole, a.kernel_rows)
            with emit.loop(*bounds, height) as p, emit.loop(0, a.outputs, emit.lanes) as k:
                to = a.dw + (((r * a.kernel_rows + p) * a.few_run + q) * a.outputs + k) * 4
                source = x.get() + (r * plane + p * a.width + q) * 4
                _few_tile(emit, a, height, to, source, n * a.cells * a.outputs + k)


def _few_tile(emit: Emitter, a: SimpleNamespace, height: int, to: Value, source: Value, delta: Value) -> None:
    places = [(p, q) for p in range(height) for q in range(FEW_COLUMNS)]
    addresses = [to + (a.few_run * p + q) * a.outputs * 4 for p, q in places]
    totals = [emit.variable(emit.number(emit.floats, 0)) for _ in places]
    line = a.width * 4
    with emit.loop(0, a.rows) as i, emit.loop(0, a.columns) as j:
        here = delta + (i * a.columns + j) * a.outputs
        value = emit.load(a.delta + here * 4, emit.floats)
        place = emit.widened(emit.load(a.place + here, emit.bytes), emit.ints)
        right, lower = place & 1, place > 1
        x = source + (i * 2 * a.width + j * 2) * 4
        for total, (p, q) in zip(totals, places, strict=True):
            top = x + line * p
            total.set(emit.fma(emit.pick(top, top + line, right + q, lower), value, total.get()))  # eq. (3)
    for total, address in zip(totals, addresses, strict=True):
        emit.store(emit.load(address, emit.floats) + total.get(), address)
