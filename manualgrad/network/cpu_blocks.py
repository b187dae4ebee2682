"""Blocks of the CPU: the kernel calls of dense layers and of the loss, and the choice of a convolution's block.

    z = D(x, w) + b, out = R(z)             ``gemm_nt``, ``relu_forward``
    δ = grad_out R'(z), grad_x = w δ        ``relu_backward``, ``gemm_strided``; Δw and Δb are products too

where grad_out is the gradient of out. ``cpu_conv_pool_block.py`` and ``cpu_conv_block.py`` have the convolutions.

F needs no kernel: in channels_last memory format an image is the row of numbers that F makes of it. For PyTorch's
channel-major F the columns of the next dense layer's weight are reordered.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu import instruction_set
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.kernel_groups import CONV2D
from manualgrad.cpu.program import Program
from manualgrad.cpu.signature import BufferRef, KernelCall
from manualgrad.cpu.team import ParallelRegion
from manualgrad.network.cpu_conv_block import ConvBlock
from manualgrad.network.cpu_conv_pool_block import ConvReLUPoolBlock
from manualgrad.network.device import Activation, Block, BlockBuffers, Split, Unsupported
from manualgrad.network.flatten_block import FlattenBlock
from manualgrad.network.layers import Conv, Dense, Flatten, Layer
from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry

MAX_REREAD_WEIGHTS = 1 << 17  # which stay in 512 KB of cache while each image is multiplied by all of them
IGNORE_INDEX = -100  # the label of an image that does not count
_ONE = ctypes.c_float(1)  # gemm_strided repeats it as a row of ones, and so adds up the rows of the other matrix
KernelCalls = list[KernelCall]


class CPUDevice:
    """The kernels of one instruction set."""

    def __init__(self, module: KernelModule) -> None:
        self.module, self.lanes = module, module.lanes

    def call(self, kernel: str, /, **arguments: Any) -> KernelCall:
        """A call of ``kernel`` for a program. Those of general convolutions are compiled when they are needed."""
        module = self.module
        if kernel not in module.addresses:
            module = instruction_set.load_group(module.instructions, CONV2D)
        return module.call(kernel, **arguments)

    def block(self, layer: Layer, x: Activation, batch_size: int) -> Block:
        if isinstance(layer, Conv):
            return _conv_block(self, layer, x, batch_size)
        return FlattenBlock(layer, x) if isinstance(layer, Flatten) else DenseBlock(self, layer, x, batch_size)

    def loss(self, classes: int, batch_size: int) -> LossBlock:
        return LossBlock(self, classes, batch_size)

    def split(self, batch_size: int, threads: int, multiplications: int, partial_sums: int) -> Split:
        num_threads = min(threads, 1 + multiplications // sizes.MULTIPLICATIONS_PER_THREAD)
        return Split(num_threads, *split_work(batch_size, sizes.num_tasks_for(batch_size, num_threads, partial_sums)))

    def program(self, num_threads: int, regions: Sequence[Any], names: Sequence[str]) -> Program:
        return Program(self.module, num_threads, [ParallelRegion(*region) for region in regions if region[1]], names)


def _conv_block(device: CPUDevice, layer: Conv, x: Activation, batch_size: int) -> Block:
    """The block for a convolution on ``x``; raise Unsupported if no kernel computes it."""
    if x.is_flat or len(x.shape) != 3 or x.shape[2] != layer.in_channels * layer.groups:
        raise Unsupported(f"a convolution of {layer.in_channels} channels does not fit the layer before it")
    if layer.groups != 1:
        raise Unsupported("no kernel of a network computes a convolution with groups")
    geometry, pooling = geometries(layer, x)
    if any(geometry.windows.padding) and layer.padding_mode != "zeros":
        raise Unsupported(f"no kernel computes a convolution with padding_mode={layer.padding_mode!r}")
    num_weights = layer.out_channels * layer.in_channels * math.prod(layer.kernel_size)
    is_padded = any(geometry.windows.padding)  # the document's engine, whose images have no border, needs this block
    if layer.is_conv_relu_pool and not (is_padded and num_weights > MAX_REREAD_WEIGHTS):
        return ConvReLUPoolBlock(device.call, device.lanes, layer, geometry, x, batch_size)
    if pooling and (pooling.index_dtype is not torch.uint8 or (layer.pool and layer.pool.return_indices)):
        raise Unsupported("no kernel computes a pooling with return_indices or windows of more than 256 places")
    return ConvBlock(device.call, device.lanes, layer, geometry, pooling, x, batch_size)


def geometries(layer: Conv, x: Activation) -> tuple[Conv2dGeometry, MaxPool2dGeometry | None]:
    """Geometry of a convolution on ``x``, and that of its pooling; raise Unsupported if the image is too small."""
    height, width, channels = x.shape
    image = torch.empty(1, channels, height, width, device="meta")
    weight = torch.empty(layer.out_channels, layer.in_channels, *layer.kernel_size, device="meta")
    try:
        conv = make_conv2d_geometry(
            image, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups, layer.flip_kernel
        )
        if not (pool := layer.pool):
            return conv, None
        shape = layer.out_channels, *conv.windows.output_size(height, width)
        sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        return conv, make_max_pool2d_geometry(shape, *sizes)
    except (TypeError, ValueError) as error:  # the layers raise it again, when they run one by one
        raise Unsupported(f"a layer refuses its input: {error}") from None


class DenseBlock:
    """D, or R∘D."""

    is_view, forward_flags, pack_flags, unpack_flags = False, 0, 0, 0

    def __init__(self, device: CPUDevice, layer: Dense, x: Activation, batch_size: int) -> None:
        self.in_features, self.out_features = math.prod(x.shape), layer.out_features
        if not x.is_flat or self.in_features != layer.in_features:
            raise Unsupported(f"a dense layer of {layer.in_features} features does not fit the layer before it")
        self._call, self.subgradient, self.batch_size = device.call, layer.subgradient, batch_size
        self.parameter_shapes: list[tuple[int, ...]] = [
            (layer.out_features, layer.in_features),
            (layer.out_features,),
        ]
        self.out = Activation((layer.out_features,), is_flat=True)
        self.multiplications, self.partial_sums = batch_size * layer.in_features * layer.out_features, 0
        # positions and channels of an image whose weight columns are in another order than its memory
        self.pixels, self.channels = math.prod(x.shape[:-1]), x.shape[-1]
        self.is_reordered = x.channel_major and min(self.pixels, self.channels) > 1

    @property
    def weight_bytes(self) -> int:
        return 4 * self.in_features * self.out_features

    def saved_buffers(self) -> dict[str, int]:
        return {} if self.subgradient is None else {"z": 4 * self.batch_size * self.out_features}

    def packed_buffers(self, split: Split) -> dict[str, int]:
        return {"packed_forward": self.weight_bytes} if self.is_reordered else {}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        if not self.is_reordered:
            return {}
        return {"packed_backward": self.weight_bytes, "packed_grad": self.weight_bytes}

    def pack_for_forward(self, at: BlockBuffers) -> KernelCalls:
        return self._to_pixel_major(at, "packed_forward")

    def pack_for_backward(self, at: BlockBuffers) -> KernelCalls:
        return self._to_pixel_major(at, "packed_backward")

    def _to_pixel_major(self, at: BlockBuffers, target: str) -> KernelCalls:
        if not self.is_reordered:
            return []
        return [self._transpose(at, at.own("w"), at.own(target), self.channels, self.pixels)]

    def _transpose(
        self, at: BlockBuffers, source: BufferRef, target: BufferRef, rows: int, columns: int
    ) -> KernelCall:
        """Transpose the ``rows`` × ``columns`` numbers of each output feature."""
        return self._call(
            "pack_weight", weight=source, packed_origin=target, out_channels=self.out_features,
            share=self._rows_per_thread(at.split), in_channels=rows, kernel_height=columns, kernel_width=1,
            c_out_stride=4 * self.in_features, c_in_stride=4, kh_stride=4 * rows, kw_stride=0,
        )  # fmt: skip

    def _rows_per_thread(self, split: Split) -> int:
        return split_work(self.out_features, split.num_threads)[1]

    def _weight(self, at: BlockBuffers, packed: str) -> BufferRef:
        return at.own(packed if self.is_reordered else "w")

    def forward(self, at: BlockBuffers) -> KernelCalls:
        has_relu = self.subgradient is not None
        gemm = self._call(
            "gemm_nt", x=at.x, weight=self._weight(at, "packed_forward"), bias=at.own("b"),
            out=at.own("z") if has_relu else at.out, rows=self.batch_size, share=at.split.images_per_task,
            in_features=self.in_features, out_features=self.out_features,
        )  # fmt: skip
        if not has_relu:
            return [gemm]  # eq. (17)
        return [gemm, self._call("relu_forward", z=at.own("z"), out=at.out, **self._numels(at.split))]  # eq. (16)

    def _numels(self, split: Split) -> dict[str, int]:
        return {"numel": self.batch_size * self.out_features, "share": split.images_per_task * self.out_features}

    def backward(self, at: BlockBuffers) -> KernelCalls:
        calls: KernelCalls = []
        if self.subgradient is not None:
            relu = self._call(
                "relu_backward", grad_out=at.grad_out, z=at.own("z"), grad_z=at.grad_out, **self._numels(at.split),
                has_subgradient=self.subgradient != 0, subgradient=float(self.subgradient),
            )  # fmt: skip
            calls.append(relu)
        if at.grad_x:
            gemm = self._call(
                "gemm_strided", lhs=at.grad_out, row_stride=self.out_features, inner_stride=1,
                rhs=self._weight(at, "packed_backward"), out=at.grad_x, rows=self.batch_size,
                share=at.split.images_per_task, inner_size=self.out_features, columns=self.in_features,
            )  # fmt: skip
            calls.append(gemm)
        return calls  # eq. (20)

    def parameter_grads(self, at: BlockBuffers) -> KernelCalls:
        grad = at.own("packed_grad" if self.is_reordered else "dw")
        weight = self._call(
            "gemm_strided", lhs=at.grad_out, row_stride=1, inner_stride=self.out_features, rhs=at.x, out=grad,
            rows=self.out_features, share=self._rows_per_thread(at.split), inner_size=self.batch_size,
            columns=self.in_features,
        )  # fmt: skip
        bias = self._call(
            "gemm_strided", lhs=ctypes.addressof(_ONE), row_stride=0, inner_stride=0, rhs=at.grad_out,
            out=at.own("db"), rows=1, share=1, inner_size=self.batch_size, columns=self.out_features,
        )  # fmt: skip
        calls = [weight, bias]
        if self.is_reordered:  # a task reorders the rows that it has computed
            calls.append(self._transpose(at, grad, at.own("dw"), self.pixels, self.channels))
        return calls  # eq. (18), (21)

    def unpack_grads(self, at: BlockBuffers) -> list[Any]:
        return []

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a network begins with a convolution")


class LossBlock:
    """S and J with δ^{L−1}, from "z" and "labels" to "probabilities", "loss" and "g"."""

    def __init__(self, device: CPUDevice, classes: int, batch_size: int) -> None:
        self._call, self.classes, self.batch_size = device.call, classes, batch_size

    def before(self, split: Split) -> KernelCalls:
        call = self._call(
            "one_hot_targets", labels=BufferRef("labels"), targets=BufferRef("targets"), counts=BufferRef("counts"),
            rows=self.batch_size, share=split_work(self.batch_size, split.num_threads)[1], classes=self.classes,
            ignore_index=IGNORE_INDEX, divides_by_count=True,
        )  # fmt: skip
        return [call]  # eq. (14)

    def losses(self, split: Split) -> KernelCalls:
        call = self._call(
            "softmax_cross_entropy", logits=BufferRef("z"), targets=BufferRef("targets"),
            grad_out=BufferRef("factor"), grad_out_stride=0, probs=BufferRef("probabilities"),
            losses=BufferRef("losses"), grad_logits=BufferRef("g"), rows=self.batch_size,
            share=split.images_per_task, classes=self.classes, needs_loss=True, needs_grad=True,
        )  # fmt: skip
        return [call]  # eq. (11), (14), (15), (19)

    def after(self) -> KernelCalls:
        return [
            self._call("sum_losses", losses=BufferRef("losses"), loss=BufferRef("loss"), rows=self.batch_size)
        ]  # eq. (13)
