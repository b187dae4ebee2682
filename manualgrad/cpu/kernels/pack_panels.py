"""Weights of a convolution in the order in which ``conv2d.py`` multiplies them.

A *panel* has some vectors of channels: a row with their biases, and then a row for each number of x that a window
has, tap by tap. Channels that fill up the last vector are zeros. A task packs ``share`` vectors of channels.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value, constant
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import channel_mask, minimum, panel_vectors
from manualgrad.cpu.kernels.conv2d_windows import TAP_WORDS
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel


@kernel(
    weight=POINTER,  # of any strides
    bias=POINTER,  # (groups * channels)
    has_bias=BOOL,
    taps=POINTER,  # (num_taps, TAP_WORDS) integers
    num_taps=INT,
    packed_weight=POINTER,
    nonfinite=POINTER,  # one float for each task: NaN if one of its weights is not finite, else 0
    groups=INT,
    share=INT,  # vectors of channels per task, all groups counted
    channels=INT,  # in a group
    outer=INT,  # a tap's run has outer·inner floats: pixels, and channels of each
    inner=INT,
    group_bytes=INT,  # strides of the weight
    channel_bytes=INT,
    outer_bytes=INT,
    inner_bytes=INT,
)
def pack_panels(emit: Emitter, a: Arguments) -> None:
    """Pack this task's vectors of channels."""
    largest, zero = panel_vectors(emit), emit.constant(emit.float_vector, 0)
    vectors = (a.channels + (emit.lanes - 1)) // emit.lanes
    rows = a.num_taps * a.outer * a.inner + 1
    nonfinite = emit.variable(emit.constant(emit.float_vector, 0))
    with emit.loop(*task_range(emit, a, vectors * a.groups)) as number:
        group, vector = number // vectors, number % vectors
        panel = vector // largest
        row_bytes = minimum(emit, vectors - panel * largest, largest) * emit.vector_bytes
        packed = a.packed_weight + (group * vectors + panel * largest) * rows * emit.vector_bytes
        packed = packed + vector % largest * emit.vector_bytes
        channel = vector * emit.lanes
        mask = channel_mask(emit, a.channels - channel)
        with emit.if_then(a.has_bias == 1):
            emit.store(emit.masked_load(a.bias + (group * a.channels + channel) * 4, mask, 0), packed)
        with emit.if_then(a.has_bias == 0):
            emit.store(zero, packed)
        lanes = [minimum(emit, channel + n, a.channels - 1) * a.channel_bytes for n in range(emit.lanes)]
        target = emit.variable(packed + row_bytes)
        origin = a.weight + group * a.group_bytes
        with (
            emit.loop(0, a.num_taps) as tap,
            emit.loop(0, a.outer) as outer,
            emit.loop(0, a.inner) as inner,
        ):
            offset = emit.load(a.taps + tap * (8 * TAP_WORDS) + 16, INT64)
            source = origin + (offset + outer * a.outer_bytes + inner * a.inner_bytes)
            gathered = _gather(emit, [source + lane for lane in lanes])
            nonfinite.set(emit.fma(gathered, zero, nonfinite.get()))
            emit.store(emit.select(mask, gathered, zero), target.get())
            target.set(target.get() + row_bytes)
    emit.store(emit.reduce_add(nonfinite.get()), a.nonfinite + a.task * 4)


def _gather(emit: Emitter, addresses: list[Value]) -> Value:
    """Return the vector of the floats at ``addresses``."""
    vector = emit.constant(emit.float_vector, 0).raw
    for n, address in enumerate(addresses):
        vector = emit.builder.insert_element(vector, emit.load(address, FLOAT).raw, constant(INT32, n))
    return Value(emit.builder, vector)
