"""Weights of a convolution with few channels in a group in the order of ``grouped_conv.py``, and back.

Packed weights are (blocks of channels, kH, kW, G, channels of a block). The channels of a block fill WEIGHT_VECTORS
vectors and are those of the targets; the G channels of a group are those of the sources. Channels that a group of the
weight does not have, and those that fill up the last block, are zeros.
"""

from __future__ import annotations

from manualgrad.cpu.grouped_conv_runs import WEIGHT_VECTORS
from manualgrad.cpu.ir.tiles import task_range
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
    "share": INT,  # channels of targets per task
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
        with emit.loop(*task_range(emit, a, a.padded_channels)) as channel:
            group, target = channel // group_size, channel % group_size
            exists = (group < a.groups) & (target < a.targets)
            bias = emit.variable(emit.constant(FLOAT, 0))
            with emit.if_then(exists & (a.has_bias == 1)):
                bias.set(emit.load(a.bias + (group * a.targets + target) * 4, FLOAT))
            emit.store(bias.get(), a.packed_bias + channel * 4)
            first = a.weight + group * a.group_bytes + target * a.target_bytes
            with (
                emit.loop(0, group_size) as source,
                emit.loop(0, a.kernel_height) as row,
                emit.loop(0, a.kernel_width) as column,
            ):
                weight = emit.variable(emit.constant(FLOAT, 0))
                with emit.if_then(exists & (source < a.sources)):
                    address = first + source * a.source_bytes + row * a.row_bytes + column * a.column_bytes
                    weight.set(emit.load(address, FLOAT))
                place = _packed_place(emit, a, group_size, channel, source, row, column)
                emit.store(weight.get(), a.packed_weight + place)

    return Kernel(Signature("pack_grouped_weight", types), body)


def sum_grouped_grads(group_size: int) -> Kernel:
    """Return the kernel that adds up the tasks' packed gradients in the layout of the weight."""
    types = _WEIGHT_TYPES | {"grad_weight_parts": POINTER, "num_parts": INT, "part_bytes": INT}

    def body(emit: Emitter, a: Arguments) -> None:
        with (
            emit.loop(*task_range(emit, a, a.groups * a.targets)) as number,
            emit.loop(0, a.sources) as source,
            emit.loop(0, a.kernel_height) as row,
            emit.loop(0, a.kernel_width) as column,
        ):
            group, target = number // a.targets, number % a.targets
            place = _packed_place(emit, a, group_size, group * group_size + target, source, row, column)
            total = emit.variable(emit.load(a.grad_weight_parts + place, FLOAT))
            with emit.loop(1, a.num_parts) as part:
                total.add(emit.load(a.grad_weight_parts + part * a.part_bytes + place, FLOAT))
            address = a.weight + group * a.group_bytes + target * a.target_bytes + source * a.source_bytes
            emit.store(total.get(), address + row * a.row_bytes + column * a.column_bytes)

    return Kernel(Signature("sum_grouped_grads", types), body)


def _packed_place(
    emit: Emitter, a: Arguments, group_size: int, channel: Value, source: Value, row: Value, column: Value
) -> Value:
    """Return the offset in bytes of an entry of a packed weight."""
    block = emit.constant(INT64, WEIGHT_VECTORS * emit.lanes)
    entry = (channel // block * a.kernel_height + row) * a.kernel_width + column
    return ((entry * group_size + source) * block + channel % block) * 4
