"""The derivatives of P(R(C(x, w) + b)) from the codes that the forward kernel left, for (1) with stride 1, windows of
2×2.

    δ_ijk  = g_ijk R'_ijk, sent by P⁻¹ to one place of its window                    (4), (10)
    Δb_k   = Σ_ij δ_ijk                                                              (17)
    Δw_pqrk = Σ_ij δ_ijk x_(s+p)(t+q)r, (s, t) being the place that δ_ijk is sent to (3)
    Δx_(s+p)(t+q)r = Σ_ijk δ_ijk w_(P−p)(Q−q)rk                                      (2)

P⁻¹(g) is never written down, and only live places are multiplied: one in four at most. Here w is [k][p][q][r], and Δw
too, both already flipped: Δw_pqrk is that of w_(P−p)(Q−q)rk. For the sums over places, a list for each k names the
live ones (``_weights_of_many``); where x has few channels r, a vector of k picks from the 2×2 shifted images instead
(``_weights_of_few``). For Δx a bit for each k says who is live.

Not multiplying by 0 is not the same where x or w is infinite or NaN: the formula makes NaN of it. ``odd`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

from manualgrad.kernels.tiles import tiles
from manualgrad.kernels.values import BYTE, FLOAT, INT32, INT64, Value
from manualgrad.kernels.vectors import Emitter

TOGETHER = 2  # images, whose live places share one list
OUTPUTS_AT_ONCE = 32  # whose weights stay in the nearest cache while all windows add them to Δx; at most 64
INPUT_TILE = 2, 5  # kernel rows and columns that Δx takes from them at once
FEW_COLUMNS = 5  # kernel columns that _weights_of_few sums at once
SLACK = 8  # floats beyond an image that _weights_of_few may read
ARGUMENTS = (
    "*x",  # [image][height][width][channels]; for few channels [image][channels][height][width]
    "*w",  # [outputs][kernel_rows][run], where run counts (q, r) with r up to x_channels
    "*g",  # [image][rows][columns][outputs]
    "*code",  # the same, bytes
    "*dx",  # [image][height][width][x_channels]
    "*dw",  # [slot] of Δw's sums: [outputs][kernel_rows][run], or [channels][kernel_rows][few_run][outputs]
    "*db",  # [slot][outputs]
    "*odd",  # [slot] floats, NaN where something is not finite
    "*scratch",  # [slot][scratch_bytes]
    "scratch_bytes",
    "images",
    "share",  # how many of them a slot computes
    "height",
    "width",
    "channels",  # of x, a multiple of the lanes unless they are few
    "x_channels",  # of w and dx, a multiple of the lanes
    "kernel_rows",
    "kernel_columns",
    "outputs",  # a multiple of the lanes
    "rows",
    "columns",
    "for_x",
    "for_w",
    "few",
    "zero_code",  # ZERO, or a number that is no code where R'(0) = 0
    "subgradient.0",
)


def scratch_bytes(cells: int, outputs: int, image: int) -> int:
    """What a slot needs for the parts that ``_lay_out`` names, in whole cache lines."""
    return -(-(cells * (TOGETHER * (5 * outputs + 20) + 32) + 4 * (image + SLACK)) // 64) * 64


def backward(emit: Emitter) -> None:
    """One slot's share of the images."""
    a = emit.named(ARGUMENTS)
    _lay_out(emit, a)
    slot_w = emit.select(a.few == 1, a.few_weights, a.many_weights)
    a.dw, a.db, a.odd = a.dw + a.slot * slot_w * 4, a.db + a.slot * a.outputs * 4, a.odd + a.slot * 4
    _clear(emit, a.dw, emit.select(a.for_w == 1, slot_w, slot_w * 0))
    _clear(emit, a.db, a.outputs)
    emit.store(emit.number(FLOAT, 0), a.odd)
    with emit.when(a.for_x == 1):
        _look_at(emit, a.odd, a.w, a.outputs * a.kernel_rows * a.x_run)
    first, end = a.slot * a.share, a.slot * a.share + a.share
    end = emit.select(end < a.images, end, a.images)
    with emit.loop(first, end, TOGETHER) as n:
        after = emit.select(n + TOGETHER < end, n + TOGETHER, end)
        with emit.loop(n, after) as image:
            _deltas(emit, a, image, image - n)
        with emit.when(a.for_w == 1):
            _look_at(emit, a.odd, a.x + n * a.image * 4, (after - n) * a.image)
            with emit.when(a.few == 1), emit.loop(n, after) as image:
                _weights_of_few(emit, a, image, image - n)
            with emit.when(a.few == 0):
                _weights_of_many(emit, a, n, after - n)
        with emit.when(a.for_x == 1), emit.loop(n, after) as image:
            _inputs(emit, a, image, image - n)


def _lay_out(emit: Emitter, a: SimpleNamespace) -> None:
    """What follows from the arguments: sizes in floats, distances in bytes, and the parts of this slot's scratch."""
    a.cells = a.rows * a.columns
    a.image = a.height * a.width * a.channels
    a.run, a.x_run = a.kernel_columns * a.channels, a.kernel_columns * a.x_channels
    a.few_run = (a.kernel_columns + (FEW_COLUMNS - 1)) // FEW_COLUMNS * FEW_COLUMNS
    a.many_weights = a.outputs * a.kernel_rows * a.run
    a.few_weights = a.channels * a.kernel_rows * a.few_run * a.outputs
    a.delta = a.scratch + a.slot * a.scratch_bytes  # floats: δ of each cell and k
    a.cell_at = a.delta + a.cells * a.outputs * (4 * TOGETHER)  # bytes from the first image to each cell
    a.live_at = a.cell_at + a.cells * (
        8 * TOGETHER
    )  # bits: of each cell and place, for each k whether it is live there
    a.list_at = a.live_at + a.cells * 32  # bytes from the first image to each live place, for one k
    a.list_delta = a.list_at + a.cells * (8 * TOGETHER)  # δ of each
    a.copy = a.list_delta + a.cells * (4 * TOGETHER)  # floats: an image
    a.place = a.copy + (a.image + SLACK) * 4  # bytes: where in its window each δ goes; 4 where nowhere


def _clear(emit: Emitter, address: Value, floats: Value) -> None:
    with emit.loop(0, floats, emit.lanes) as n:
        emit.store(emit.number(emit.floats, 0), address + n * 4)


def _look_at(emit: Emitter, odd: Value, address: Value, floats: Value) -> None:
    """Makes ``odd`` NaN if one of the floats is not finite: only then is 0 times it not 0."""
    zero, found = emit.number(emit.floats, 0), emit.variable(emit.number(emit.floats, 0))
    whole = floats - floats % emit.lanes
    with emit.loop(0, whole, emit.lanes) as n:
        found.set(emit.fma(emit.load(address + n * 4, emit.floats), zero, found.get()))
    rest = emit.variable(emit.load(odd, FLOAT) + emit.sum_lanes(found.get()))
    with emit.loop(whole, floats) as n:
        rest.add(emit.load(address + n * 4, FLOAT) * 0)
    emit.store(rest.get(), odd)


def _deltas(emit: Emitter, a: SimpleNamespace, image: Value, n: Value) -> None:
    """δ of one image and the place in its window that each goes to, into the scratch as its image ``n``; and Δb."""
    at, to = image * a.cells * a.outputs, n * a.cells * a.outputs
    nothing, nowhere = emit.number(emit.floats, 0), emit.number(emit.ints, 4)
    half, zero_code = emit.every_lane(a.subgradient), emit.every_lane(emit.narrowed(a.zero_code, INT32))
    with emit.loop(0, a.outputs, emit.lanes) as k:
        total = emit.variable(emit.load(a.db + k * 4, emit.floats))
        with emit.loop(0, a.cells) as cell:
            here = cell * a.outputs + k
            g = emit.load(a.g + (at + here) * 4, emit.floats)
            code = emit.widened(emit.load(a.code + (at + here), emit.bytes), emit.ints)
            alive, zero = code < 4, code == zero_code
            delta = emit.select(alive, g, emit.select(zero, g * half, nothing))  # eq. (10)
            place = emit.select(alive, code, emit.select(zero, emit.number(emit.ints, 0), nowhere))
            emit.store(delta, a.delta + (to + here) * 4)
            emit.store(emit.narrowed(place, emit.bytes), a.place + (to + here))
            total.add(delta)  # eq. (17)
        emit.store(total.get(), a.db + k * 4)


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


def _weights_of_many(emit: Emitter, a: SimpleNamespace, first: Value, images: Value) -> None:
    """Δw from some images: for each k, a list of the live places, then Σ δ x over the list, tile by tile."""
    pixel, line = a.channels * 4, a.width * a.channels * 4
    x, count = a.x + first * a.image * 4, images * a.cells
    with emit.loop(0, images) as n, emit.loop(0, a.rows) as i, emit.loop(0, a.columns) as j:
        offset = n * a.image * 4 + i * 2 * line + j * 2 * pixel
        emit.store(offset, a.cell_at + ((n * a.rows + i) * a.columns + j) * 8)
    with emit.loop(0, a.outputs) as k:
        live = emit.variable(emit.number(INT64, 0))
        with emit.loop(0, count) as cell:
            here = cell * a.outputs + k
            place = emit.widened(emit.load(a.place + here, BYTE), INT64)
            offset = emit.load(a.cell_at + cell * 8, INT64) + (place >> 1) * line + (place & 1) * pixel
            emit.store(offset, a.list_at + live.get() * 8)
            emit.store(emit.load(a.delta + here * 4, FLOAT), a.list_delta + live.get() * 4)
            live.add(emit.widened(place < 4, INT64))
        for p, v, *tile in _tiles(emit, a.kernel_rows, a.run, _largest_tile(emit)):
            source = x + p * line + v * 4

            def terms(add, source=source):
                with emit.loop(0, live.get()) as n:
                    add(emit.broadcast(a.list_delta + n * 4), source + emit.load(a.list_at + n * 8, INT64))  # eq. (3)

            to = a.dw + ((k * a.kernel_rows + p) * a.run + v) * 4
            _tile_sum(emit, tile, to, a.run * 4, terms, line)


def _weights_of_few(emit: Emitter, a: SimpleNamespace, image: Value, n: Value) -> None:
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


def _inputs(emit: Emitter, a: SimpleNamespace, image: Value, n: Value) -> None:
    """Δx of one image, from some k at a time, whose weights for the rows and columns of a tile then stay near."""
    line = a.width * a.x_channels * 4
    dx = a.dx + image * a.height * line
    _clear(emit, dx, a.height * a.width * a.x_channels)
    with emit.loop(0, a.outputs, OUTPUTS_AT_ONCE) as k:
        here = n * a.cells * a.outputs + k
        _find_live(emit, a, here, a.outputs - k)
        for p, rows in tiles(emit, emit.number(INT64, 0), a.kernel_rows, INPUT_TILE[0]):
            for q, columns in tiles(emit, emit.number(INT64, 0), a.kernel_columns, INPUT_TILE[1]):
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
