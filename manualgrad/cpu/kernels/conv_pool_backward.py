"""The derivatives of P(R(C(x, w) + b)) from the codes that the forward kernel left, for (1) with stride 1, windows of
2×2.

    δ_ijk  = g_ijk R'_ijk, sent by P⁻¹ to one place of its window                    (4), (10)
    Δb_k   = Σ_ij δ_ijk                                                              (17)
    Δw_pqrk = Σ_ij δ_ijk x_(s+p)(t+q)r, (s, t) being the place that δ_ijk is sent to (3)
    Δx_(s+p)(t+q)r = Σ_ijk δ_ijk w_(P−p)(Q−q)rk                                      (2)

P⁻¹(g) is never written down, and only live places are multiplied: one in four at most. Here w is [k][p][q][r], and Δw
too, both already flipped: Δw_pqrk is that of w_(P−p)(Q−q)rk. The two sums are ``conv_pool_grad_weight.py``
and ``conv_pool_grad_input.py``.

Not multiplying by 0 is not the same where x or w is infinite or NaN: the formula makes NaN of it. ``odd`` tells.
"""

from __future__ import annotations

from types import SimpleNamespace

from manualgrad.cpu.ir.tiles import clear
from manualgrad.cpu.ir.values import FLOAT, INT32, Value
from manualgrad.cpu.ir.vectors import Emitter
from manualgrad.cpu.kernels.conv_pool_grad_input import inputs
from manualgrad.cpu.kernels.conv_pool_grad_weight import FEW_COLUMNS, SLACK, weights_of_few, weights_of_many

TOGETHER = 2  # images, whose sums of Δw are added at once
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
    return -(-(cells * (TOGETHER * (5 * outputs + 8) + 32) + 16 * outputs + 4 * (image + SLACK)) // 64) * 64


def backward(emit: Emitter) -> None:
    """One slot's share of the images."""
    a = emit.named(ARGUMENTS)
    _lay_out(emit, a)
    slot_w = emit.select(a.few == 1, a.few_weights, a.many_weights)
    a.dw, a.db, a.odd = a.dw + a.slot * slot_w * 4, a.db + a.slot * a.outputs * 4, a.odd + a.slot * 4
    clear(emit, a.dw, emit.select(a.for_w == 1, slot_w, slot_w * 0))
    clear(emit, a.db, a.outputs)
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
                weights_of_few(emit, a, image, image - n)
            with emit.when(a.few == 0):
                weights_of_many(emit, a, n, after - n)
        with emit.when(a.for_x == 1), emit.loop(n, after) as image:
            inputs(emit, a, image, image - n)


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
    a.cells_live_at = a.live_at + a.cells * 32  # bits: of each place and k, for some cells whether it is live there
    a.copy = a.cells_live_at + a.outputs * 16  # floats: an image
    a.place = a.copy + (a.image + SLACK) * 4  # bytes: where in its window each δ goes; 4 where nowhere


def _look_at(emit: Emitter, odd: Value, address: Value, floats: Value) -> None:
    """Makes ``odd`` NaN if one of the floats is not finite: only then is 0 times it not 0."""
    zero, step = emit.number(emit.floats, 0), 4 * emit.lanes
    found = [emit.variable(zero) for _ in range(4)]  # one alone would wait for itself
    whole = floats - floats % step
    with emit.loop(0, whole, step) as n:
        for place, part in enumerate(found):
            floats_here = emit.load(address + n * 4 + emit.bytes_of_vector * place, emit.floats)
            part.set(emit.fma(floats_here, zero, part.get()))
    rest = emit.variable(emit.load(odd, FLOAT))
    for part in found:
        rest.add(emit.sum_lanes(part.get()))
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
