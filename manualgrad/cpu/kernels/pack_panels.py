"""Weights of a convolution in the order in which ``conv2d.py`` multiplies them, and gradients from such an order.

A *panel* has some vectors of channels: a row with their biases, and then a row for each number of x that a window
has, tap by tap. Channels that fill up the last vector are zeros. A task packs, or unpacks, ``share`` panels, a block
of rows at a time, so that all vectors of a row are written while it is in the nearest caches.

If neighbours in memory are channels, a row is copied as it is. Otherwise neighbours are numbers of one channel, of
all taps or of one. Vectors of them, one for each channel, are transposed in registers into scratch memory, which then
has these rows in the order of memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.transposition import transposed
from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import TILE_ROWS, channel_mask, minimum, panel_vectors, tile_of_run
from manualgrad.cpu.kernels.conv2d_windows import TAP_WORDS
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel

ORDER_ARGUMENTS = {
    "taps": POINTER,  # (num_taps, TAP_WORDS) integers
    "num_taps": INT,
    "groups": INT,
    "share": INT,  # panels per task, all groups counted
    "channels": INT,  # in a group
    "outer": INT,  # a tap's run has outer·inner floats: pixels, and channels of each
    "inner": INT,
    "group_bytes": INT,  # strides of the weight
    "channel_bytes": INT,
    "outer_bytes": INT,
    "inner_bytes": INT,
    "inner_per_block": INT,
    "neighbours": INT,  # floats of a channel in memory for each ``inner``: of all taps, 1 for those of a tap, or 0
    "scratch": POINTER,  # of each task: inner_per_block·neighbours rows, and up to whole blocks of ``lanes``
}


@kernel(
    **ORDER_ARGUMENTS,
    weight=POINTER,
    bias=POINTER,  # (groups * channels)
    has_bias=BOOL,
    packed_weight=POINTER,
    nonfinite=POINTER,  # one float for each task: NaN if one of its weights is not finite, else 0
)
def pack_panels(emit: Emitter, a: Arguments) -> None:
    """Pack this task's panels."""
    zero, nonfinite = emit.constant(emit.float_vector, 0), emit.variable(emit.constant(emit.float_vector, 0))
    rows_of_panel, scratch = a.num_taps * a.outer * a.inner + 1, _scratch(emit, a)
    for group, first_vector, vectors in _panels(emit, a):
        packed = a.packed_weight + (group * _num_vectors(emit, a) + first_vector) * rows_of_panel * emit.vector_bytes
        row_bytes = vectors * emit.vector_bytes
        _pack_bias(emit, a, packed, group * a.channels, first_vector, vectors)
        for start, stop, v, channel in _blocks_of_vectors(emit, a, first_vector, vectors):
            mask = channel_mask(emit, a.channels - channel)
            source = a.weight + (group * a.group_bytes + channel * a.channel_bytes)
            target = packed + row_bytes + v * emit.vector_bytes
            with emit.if_then(a.neighbours == 0):
                for offset, number in _rows(emit, a, (0, a.num_taps), (0, a.outer), (start, stop)):
                    row = emit.masked_load(source + offset, mask, 0)
                    nonfinite.set(emit.fma(row, zero, nonfinite.get()))
                    emit.store(row, target + number * row_bytes)
            with emit.if_then(a.neighbours > 0):
                last_lane = a.channels - channel - 1
                lanes = [source + minimum(emit, last_lane, n) * a.channel_bytes for n in range(emit.lanes)]
                for offset, taps, outer in _pieces(emit, a, start):
                    for first, valid in _vectors_of(emit, (stop - start) * a.neighbours):
                        block = [emit.masked_load(lane + (offset + first * 4), valid, 0) for lane in lanes]
                        for n, row in enumerate(transposed(emit, block)):
                            emit.store(row, scratch + (first + n) * emit.vector_bytes)
                    for row_offset, number in _rows(emit, a, taps, outer, (start, stop)):
                        row = emit.load(scratch + (row_offset - offset) * emit.lanes, emit.float_vector)
                        row = emit.select(mask, row, zero)
                        nonfinite.set(emit.fma(row, zero, nonfinite.get()))
                        emit.store(row, target + number * row_bytes)
    emit.store(emit.reduce_add(nonfinite.get()), a.nonfinite + a.task * 4)


@kernel(
    **ORDER_ARGUMENTS,  # ``neighbours`` is not 0
    partial_sums=POINTER,  # of ``conv2d_grad_weight``: (units, TILE_ROWS, a panel's floats)
    grad_weight=POINTER,
    nonfinite=POINTER,  # one float for each task: NaN if one of its sums is not finite, else 0
)
def unpack_panels(emit: Emitter, a: Arguments) -> None:
    """Store this task's panels in the weight gradient."""
    largest, scratch, run = panel_vectors(emit), _scratch(emit, a), a.outer * a.inner
    zero, nonfinite = emit.constant(emit.float_vector, 0), emit.variable(emit.constant(emit.float_vector, 0))
    tiles = (run + (TILE_ROWS - 1)) // TILE_ROWS
    unit_bytes, panels = TILE_ROWS * largest * emit.vector_bytes, (_num_vectors(emit, a) + (largest - 1)) // largest
    for group, first_vector, vectors in _panels(emit, a):
        units = a.partial_sums + (group * panels + first_vector // largest) * a.num_taps * tiles * unit_bytes
        for start, stop, v, channel in _blocks_of_vectors(emit, a, first_vector, vectors):
            target = a.grad_weight + (group * a.group_bytes + channel * a.channel_bytes)
            channels_left = a.channels - channel
            for offset, taps, outer in _pieces(emit, a, start):
                for row_offset, number in _rows(emit, a, taps, outer, (start, stop)):
                    tap, r = number // run, number % run
                    tile = r // TILE_ROWS
                    row = r - tile_of_run(emit, tile, run)[0]
                    address = units + ((tap * tiles + tile) * unit_bytes + (row * vectors + v) * emit.vector_bytes)
                    total = emit.load(address, emit.float_vector)
                    nonfinite.set(emit.fma(total, zero, nonfinite.get()))
                    emit.store(total, scratch + (row_offset - offset) * emit.lanes)
                for first, valid in _vectors_of(emit, (stop - start) * a.neighbours):
                    block = [
                        emit.load(scratch + (first + n) * emit.vector_bytes, emit.float_vector)
                        for n in range(emit.lanes)
                    ]
                    for n, lane in enumerate(transposed(emit, block)):
                        with emit.if_then(channels_left > n):
                            emit.masked_store(lane, target + (n * a.channel_bytes + offset + first * 4), valid)
    emit.store(emit.reduce_add(nonfinite.get()), a.nonfinite + a.task * 4)


def _pack_bias(
    emit: Emitter, a: Arguments, packed: Value, group_start: Value, first_vector: Value, vectors: Value
) -> None:
    """Store a panel's biases in its first row, or zeros."""
    with emit.loop(0, vectors) as v:
        channel = (first_vector + v) * emit.lanes
        target = packed + v * emit.vector_bytes
        emit.store(emit.constant(emit.float_vector, 0), target)
        with emit.if_then(a.has_bias == 1):
            mask = channel_mask(emit, a.channels - channel)
            emit.store(emit.masked_load(a.bias + (group_start + channel) * 4, mask, 0), target)


def _num_vectors(emit: Emitter, a: Arguments) -> Value:
    """Vectors of channels of a group."""
    return (a.channels + (emit.lanes - 1)) // emit.lanes


def _scratch(emit: Emitter, a: Arguments) -> Value:
    """This task's scratch memory."""
    rows = (a.inner_per_block * a.neighbours + (emit.lanes - 1)) // emit.lanes * emit.lanes
    return a.scratch + a.task * rows * emit.vector_bytes


def _panels(emit: Emitter, a: Arguments) -> Iterator[tuple[Value, Value, Value]]:
    """Loop over this task's panels: group, number of the first vector in it, and vectors of the panel."""
    largest, vectors = panel_vectors(emit), _num_vectors(emit, a)
    panels = (vectors + (largest - 1)) // largest
    with emit.loop(*task_range(emit, a, panels * a.groups)) as number:
        first_vector = number % panels * largest
        yield number // panels, first_vector, minimum(emit, vectors - first_vector, largest)


def _blocks_of_vectors(
    emit: Emitter, a: Arguments, first_vector: Value, vectors: Value
) -> Iterator[tuple[Value, Value, Value, Value]]:
    """Loop over blocks of ``inner``, and a panel's vectors: start and stop, number of the vector, first channel."""
    with emit.block_loop(a.inner, a.inner_per_block) as (start, stop), emit.loop(0, vectors) as v:
        yield start, stop, v, (first_vector + v) * emit.lanes


Range = tuple[Value | int, Value]


def _pieces(emit: Emitter, a: Arguments, start: Value) -> Iterator[tuple[Value, Range, Range]]:
    """Loop over pieces of neighbours: offset of the first in bytes, and their taps and ``outer``."""
    by_tap, one = a.neighbours == 1, emit.constant(INT64, 1)
    taps, outers = emit.select(by_tap, one, a.num_taps), emit.select(by_tap, one, a.outer)
    with emit.loop(0, a.num_taps, taps) as tap, emit.loop(0, a.outer, outers) as outer:
        first = _tap_offset(emit, a, tap) + outer * a.outer_bytes
        offset = emit.select(by_tap, first, emit.constant(INT64, 0)) + start * a.inner_bytes
        yield offset, (tap, tap + taps), (outer, outer + outers)


def _rows(emit: Emitter, a: Arguments, taps: Range, outers: Range, inners: Range) -> Iterator[tuple[Value, Value]]:
    """Loop over rows of a panel: byte offset and number of each."""
    with emit.loop(*taps) as tap, emit.loop(*outers) as outer, emit.loop(*inners) as inner:
        offset = _tap_offset(emit, a, tap) + outer * a.outer_bytes + inner * a.inner_bytes
        yield offset, (tap * a.outer + outer) * a.inner + inner


def _tap_offset(emit: Emitter, a: Arguments, tap: Value) -> Value:
    return emit.load(a.taps + tap * (8 * TAP_WORDS) + 16, INT64)


def _vectors_of(emit: Emitter, count: Value) -> Iterator[tuple[Value, Value | None]]:
    """Cover ``count`` floats with vectors: the first float of each, and the mask of the last, None for the others."""
    whole = count - count % emit.lanes
    with emit.loop(0, whole, emit.lanes) as first:
        yield first, None
    with emit.if_then(whole < count):
        yield whole, emit.first_lanes(count - whole)
