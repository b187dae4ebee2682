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

ARGUMENTS = (
    "*weight",  # (C_out, C_in, kH, kW), contiguous; the weight or its gradient
    "*packed",  # its first element (0, 0, 0, 0)
    "out_channels",
    "share",  # output channels per task
    "in_channels",
    "kernel_height",
    "kernel_width",
    "c_out_stride",  # of packed, in bytes
    "c_in_stride",
    "kh_stride",
    "kw_stride",
    "num_sums",  # packed gradients, one from each task of conv_pool_backward
    "sum_stride",  # bytes from one to the next
    "*grad_bias",  # (C_out)
    "*bias_sums",  # (num_sums, bias_stride)
    "bias_stride",
)


def _weight_addresses(emit: Emitter, a: Arguments) -> Iterator[tuple[Value, Value]]:
    """The addresses, unpacked and packed, of every weight in this task's share.

    The innermost loop runs over neighbours in the packed order: output channels, or else input channels."""
    with (
        emit.if_then(a.c_out_stride == 4),
        emit.loop(0, a.in_channels) as c_in,
        emit.loop(0, a.kernel_height) as kh,
        emit.loop(0, a.kernel_width) as kw,
        emit.loop(*task_range(emit, a, a.out_channels)) as c_out,
    ):
        yield _element_addresses(a, c_out, c_in, kh, kw)
    with (
        emit.if_then(a.c_out_stride > 4),
        emit.loop(*task_range(emit, a, a.out_channels)) as c_out,
        emit.loop(0, a.kernel_height) as kh,
        emit.loop(0, a.kernel_width) as kw,
        emit.loop(0, a.in_channels) as c_in,
    ):
        yield _element_addresses(a, c_out, c_in, kh, kw)


def _element_addresses(a: Arguments, c_out: Value, c_in: Value, kh: Value, kw: Value) -> tuple[Value, Value]:
    n = ((c_out * a.in_channels + c_in) * a.kernel_height + kh) * a.kernel_width + kw
    packed = a.packed + c_out * a.c_out_stride + c_in * a.c_in_stride + kh * a.kh_stride + kw * a.kw_stride
    return a.weight + n * 4, packed


def pack_weight(emit: Emitter) -> None:
    """Copy this task's weights into the packed order."""
    for unpacked, packed in _weight_addresses(emit, emit.load_arguments(ARGUMENTS)):
        emit.store(emit.load(unpacked, FLOAT), packed)


def unpack_reduce_grads(emit: Emitter) -> None:
    """Sum this task's part of the packed weight gradients and of the bias gradients."""
    a = emit.load_arguments(ARGUMENTS)

    def reduce(address: Value, stride: Value) -> Value:
        total = emit.variable(emit.load(address, FLOAT))
        with emit.loop(1, a.num_sums) as n:
            total.add(emit.load(address + n * stride, FLOAT))
        return total.get()

    for unpacked, packed in _weight_addresses(emit, a):
        emit.store(reduce(packed, a.sum_stride), unpacked)
    with emit.loop(*task_range(emit, a, a.out_channels)) as c_out:
        emit.store(reduce(a.bias_sums + c_out * 4, a.bias_stride * 4), a.grad_bias + c_out * 4)
