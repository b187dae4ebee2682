"""Weights of a convolution with few channels in a group in the order of ``grouped_conv.py``, and back.

Packed weights are (blocks of channels, kH, kW, G, channels of a block). The channels of a block fill WEIGHT_VECTORS
vectors and are those of the targets; the G channels of a group are those of the sources. Channels that a group of the
weight does not have, and those that fill up the last block, are zeros.

Where a group is one or two vectors, and its sources or its targets are neighbours in memory, whole vectors are read.
Those that have sources of one target are transposed in registers into those that have targets of one source.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.grouped_conv_runs import WEIGHT_VECTORS
from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.transposition import transposed
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import BOOL, INT, POINTER, Kernel, Signature

_WEIGHT_TYPES = {
    "weight": POINTER,  # of any strides
    "groups": INT,
    "targets": INT,  # channels of a group that targets have
    "sources": INT,  # and that sources have
    "group_bytes": INT,  # strides of the weight
    "target_bytes": INT,
    "source_bytes": INT,
    "row_bytes": INT,
    "column_bytes": INT,
    "kernel_height": INT,
    "kernel_width": INT,
    "share": INT,  # channels of targets per task, of whole groups where a vector is one
}


def pack_grouped_weight(group_size: int) -> Kernel:
    """Return the kernel that packs a weight, and a bias, for groups of ``group_size`` channels."""
    types = _WEIGHT_TYPES | {
        "bias": POINTER,
        "has_bias": BOOL,
        "packed_weight": POINTER,
        "packed_bias": POINTER,  # (padded_channels)
        "padded_channels": INT,  # a multiple of a block
    }

    def body(emit: Emitter, a: Arguments) -> None:
        channels = task_range(emit, a, a.padded_channels)
        with emit.loop(*channels) as channel:
            exists, address = _channel(a, group_size, channel, a.bias, a.targets * 4, emit.constant(INT64, 4))
            bias = emit.variable(emit.constant(FLOAT, 0))
            with emit.if_then(exists & (a.has_bias == 1)):
                bias.set(emit.load(address, FLOAT))
            emit.store(bias.get(), a.packed_bias + channel * 4)
        neighbours = _neighbours(emit, a, group_size)
        with emit.if_then(neighbours == SINGLE):
            _pack_floats(emit, a, group_size, channels)
        if group_size >= emit.lanes:
            for kind in (SOURCES, TARGETS):
                with emit.if_then(neighbours == kind):
                    _pack_vectors(emit, a, group_size, channels, kind)

    return Kernel(Signature("pack_grouped_weight", types), body)


SINGLE, SOURCES, TARGETS = range(3)  # what neighbours in memory are: read as vectors, or one by one


def _neighbours(emit: Emitter, a: Arguments, group_size: int) -> Value:
    """Return SOURCES or TARGETS if a group has vectors of them that are neighbours in memory; else SINGLE."""
    single = emit.constant(INT64, SINGLE)
    if group_size < emit.lanes:
        return single
    is_full = (a.targets == group_size) & (a.sources == group_size)
    targets = emit.select(is_full & (a.target_bytes == 4), emit.constant(INT64, TARGETS), single)
    return emit.select(is_full & (a.source_bytes == 4), emit.constant(INT64, SOURCES), targets)


def _channel(
    a: Arguments, group_size: int, channel: Value, start: Value, group_bytes: Value, target_bytes: Value
) -> tuple[Value, Value]:
    """Return True if a tensor has this padded channel of the targets, and the address of its first number."""
    group, target = channel // group_size, channel % group_size
    return (group < a.groups) & (target < a.targets), start + group * group_bytes + target * target_bytes


def _taps(emit: Emitter, a: Arguments) -> Iterator[tuple[Value, Value, Value]]:
    """Row and column of each tap, and its place in the weight in bytes."""
    with emit.loop(0, a.kernel_height) as row, emit.loop(0, a.kernel_width) as column:
        yield row, column, row * a.row_bytes + column * a.column_bytes


def _pack_floats(emit: Emitter, a: Arguments, group_size: int, channels: tuple[Value, Value]) -> None:
    with emit.loop(*channels) as channel, emit.loop(0, group_size) as source:
        exists, first = _channel(a, group_size, channel, a.weight, a.group_bytes, a.target_bytes)
        for row, column, offset in _taps(emit, a):
            weight = emit.variable(emit.constant(FLOAT, 0))
            with emit.if_then(exists & (source < a.sources)):
                weight.set(emit.load(first + source * a.source_bytes + offset, FLOAT))
            place = _packed_place(emit, a, group_size, channel, source, row, column)
            emit.store(weight.get(), a.packed_weight + place)


def _pack_vectors(
    emit: Emitter, a: Arguments, group_size: int, channels: tuple[Value, Value], neighbours: int
) -> None:
    """Pack groups that are one or two vectors, a tap of as many targets and sources as a vector has at a time."""
    zero, step = emit.constant(emit.float_vector, 0), a.target_bytes if neighbours == SOURCES else a.source_bytes
    with emit.loop(*channels, emit.lanes) as channel, emit.loop(0, group_size, emit.lanes) as source:
        exists, first = _channel(a, group_size, channel, a.weight, a.group_bytes, a.target_bytes)
        first = first + source * a.source_bytes
        for row, column, offset in _taps(emit, a):
            places = _packed_vectors(emit, a, group_size, a.packed_weight, channel, source, row, column)
            with emit.if_then(exists == 0):  # a group that fills up the last block
                for place in places:
                    emit.store(zero, place)
            with emit.if_then(exists):
                vectors = [emit.load(first + offset + step * n, emit.float_vector) for n in range(emit.lanes)]
                vectors = transposed(emit, vectors) if neighbours == SOURCES else vectors
                for vector, place in zip(vectors, places, strict=True):
                    emit.store(vector, place)


def sum_grouped_grads(group_size: int) -> Kernel:
    """Return the kernel that adds up the tasks' packed gradients in the layout of the weight."""
    types = _WEIGHT_TYPES | {"grad_weight_parts": POINTER, "num_parts": INT, "part_bytes": INT}

    def body(emit: Emitter, a: Arguments) -> None:
        numbers = task_range(emit, a, a.groups * a.targets)
        neighbours = _neighbours(emit, a, group_size)
        if group_size >= emit.lanes:
            with emit.if_then(neighbours == SOURCES):
                _sum_vectors(emit, a, group_size, numbers)
        with emit.if_then((neighbours == SOURCES) == 0):
            _sum_floats(emit, a, group_size, numbers)

    return Kernel(Signature("sum_grouped_grads", types), body)


def _sum_floats(emit: Emitter, a: Arguments, group_size: int, numbers: tuple[Value, Value]) -> None:
    with emit.loop(*numbers) as number, emit.loop(0, a.sources) as source:
        group, target = number // a.targets, number % a.targets
        first = a.weight + group * a.group_bytes + target * a.target_bytes + source * a.source_bytes
        for row, column, offset in _taps(emit, a):
            place = _packed_place(emit, a, group_size, group * group_size + target, source, row, column)
            total = emit.variable(emit.load(a.grad_weight_parts + place, FLOAT))
            with emit.loop(1, a.num_parts) as part:
                total.add(emit.load(a.grad_weight_parts + part * a.part_bytes + place, FLOAT))
            emit.store(total.get(), first + offset)


def _sum_vectors(emit: Emitter, a: Arguments, group_size: int, numbers: tuple[Value, Value]) -> None:
    """Add up what :func:`_pack_vectors` packs, where sources are neighbours in memory."""
    with emit.loop(*numbers, emit.lanes) as number, emit.loop(0, group_size, emit.lanes) as source:
        _, first = _channel(a, group_size, number, a.weight, a.group_bytes, a.target_bytes)
        first = first + source * a.source_bytes
        for row, column, offset in _taps(emit, a):
            places = _packed_vectors(emit, a, group_size, a.grad_weight_parts, number, source, row, column)
            totals = [emit.variable(emit.load(place, emit.float_vector)) for place in places]
            with emit.loop(1, a.num_parts) as part:
                for total, place in zip(totals, places, strict=True):
                    total.add(emit.load(place + part * a.part_bytes, emit.float_vector))
            for target, vector in enumerate(transposed(emit, [total.get() for total in totals])):
                emit.store(vector, first + offset + a.target_bytes * target)


def _packed_vectors(
    emit: Emitter,
    a: Arguments,
    group_size: int,
    start: Value,
    channel: Value,
    source: Value,
    row: Value,
    column: Value,
) -> list[Value]:
    """Return the addresses of a tap's vectors of a packed weight, for as many sources as a vector has floats."""
    first = start + _packed_place(emit, a, group_size, channel, source, row, column)
    return [first + n * WEIGHT_VECTORS * emit.vector_bytes for n in range(emit.lanes)]


def _packed_place(
    emit: Emitter, a: Arguments, group_size: int, channel: Value, source: Value, row: Value, column: Value
) -> Value:
    """Return the offset in bytes of an entry of a packed weight."""
    block = emit.constant(INT64, WEIGHT_VECTORS * emit.lanes)
    entry = (channel // block * a.kernel_height + row) * a.kernel_width + column
    return ((entry * group_size + source) * block + channel % block) * 4
