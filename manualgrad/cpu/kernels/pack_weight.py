"""Convolution weights between PyTorch's order (C_out, C_in, kH, kW) and the packed orders of the conv_pool kernels.

``pack_weight`` copies a weight into a packed order. ``unpack_reduce_grads`` sums packed weight gradients, and bias
gradients, over the tasks of ``conv_pool_backward``, and stores the sums in PyTorch's order. A task converts ``share``
output channels.

A packed order is given by strides. Those of kH and kW are negative if the kernel is flipped.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel


def _addresses(emit: Emitter, a: Arguments, unpacked: Value, packed_origin: Value) -> Iterator[tuple[Value, Value]]:
    """The addresses, unpacked and packed, of every weight in this task's share.

    The innermost loop runs over neighbours in the packed order: output channels, or else input channels."""

    def addresses(c_out: Value, c_in: Value, kh: Value, kw: Value) -> tuple[Value, Value]:
        n = ((c_out * a.in_channels + c_in) * a.kernel_height + kh) * a.kernel_width + kw
        offset = c_out * a.c_out_stride + c_in * a.c_in_stride + kh * a.kh_stride + kw * a.kw_stride
        return unpacked + n * 4, packed_origin + offset

    with (
        emit.if_then(a.c_out_stride == 4),
        emit.loop(0, a.in_channels) as c_in,
        emit.loop(0, a.kernel_height) as kh,
        emit.loop(0, a.kernel_width) as kw,
        emit.loop(*task_range(emit, a, a.out_channels)) as c_out,
    ):
        yield addresses(c_out, c_in, kh, kw)
    with (
        emit.if_then(a.c_out_stride > 4),
        emit.loop(*task_range(emit, a, a.out_channels)) as c_out,
        emit.loop(0, a.kernel_height) as kh,
        emit.loop(0, a.kernel_width) as kw,
        emit.loop(0, a.in_channels) as c_in,
    ):
        yield addresses(c_out, c_in, kh, kw)


@kernel(
    weight=POINTER,  # (C_out, C_in, kH, kW), contiguous
    packed_origin=POINTER,  # where the packed weight has (0, 0, 0, 0)
    out_channels=INT,
    share=INT,  # output channels per task
    in_channels=INT,
    kernel_height=INT,
    kernel_width=INT,
    c_out_stride=INT,  # of the packed weight, in bytes, as the next three
    c_in_stride=INT,
    kh_stride=INT,
    kw_stride=INT,
)
def pack_weight(emit: Emitter, a: Arguments) -> None:
    """Copy this task's weights into the packed order."""
    for unpacked, packed in _addresses(emit, a, a.weight, a.packed_origin):
        emit.store(emit.load(unpacked, FLOAT), packed)


@kernel(
    grad_weight=POINTER,  # (C_out, C_in, kH, kW), contiguous
    grad_weight_parts_origin=POINTER,  # where the first part has (0, 0, 0, 0)
    grad_weight_part_bytes=INT,  # from one part to the next
    grad_bias=POINTER,  # (C_out)
    grad_bias_parts=POINTER,  # (num_parts, ...)
    grad_bias_part_bytes=INT,  # from one part to the next
    num_parts=INT,  # one from each task of conv_pool_backward
    out_channels=INT,
    share=INT,  # output channels per task
    in_channels=INT,  # 0 if there is no weight gradient
    kernel_height=INT,
    kernel_width=INT,
    c_out_stride=INT,  # of a packed part, in bytes, as the next three
    c_in_stride=INT,
    kh_stride=INT,
    kw_stride=INT,
)
def unpack_reduce_grads(emit: Emitter, a: Arguments) -> None:
    """Sum this task's part of the packed weight gradients and of the bias gradients."""

    def reduce(address: Value, part_bytes: Value) -> Value:
        total = emit.variable(emit.load(address, FLOAT))
        with emit.loop(1, a.num_parts) as n:
            total.add(emit.load(address + n * part_bytes, FLOAT))
        return total.get()

    for unpacked, packed in _addresses(emit, a, a.grad_weight, a.grad_weight_parts_origin):
        emit.store(reduce(packed, a.grad_weight_part_bytes), unpacked)
    with emit.loop(*task_range(emit, a, a.out_channels)) as c_out:
        emit.store(reduce(a.grad_bias_parts + c_out * 4, a.grad_bias_part_bytes), a.grad_bias + c_out * 4)
