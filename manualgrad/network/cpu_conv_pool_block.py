"""Convolution, ReLU and 2×2 pooling in one kernel, as a block of the CPU.

    z = C(x, w) + b, out = P(R(z))          ``conv_pool_forward``, which also writes the pool index
    grad_x, Δw, Δb from grad_out            ``conv_pool_backward`` applies P⁻¹ and R' from the pool index

The kernels have no padding, and channels in whole vectors. So images are copied: x with its padding, and what has
other numbers of channels with channels of zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu.conv2d_calls import Call
from manualgrad.cpu.conv_pool import to_backward_layout, to_contiguous
from manualgrad.cpu.conv_pool_sizes import sizes_of, split_work
from manualgrad.cpu.signature import KernelCall
from manualgrad.network.cpu_images import Size, copy_images, copy_to_planes
from manualgrad.network.device import Activation, BlockBuffers, Split
from manualgrad.network.layers import Conv
from manualgrad.ops.conv2d_geometry import Conv2dGeometry


class ConvReLUPoolBlock:
    """P∘R∘C with stride 1 and windows of 2×2."""

    is_view, forward_flags, pack_flags, unpack_flags = False, 0, 0, 0

    def __init__(
        self, call: Call, lanes: int, layer: Conv, geometry: Conv2dGeometry, x: Activation, batch_size: int
    ) -> None:
        self.height, self.width, self.channels = x.shape
        self.padding = geometry.windows.padding
        height, width = geometry.windows.padded_size(self.height, self.width)
        shape = layer.out_channels, self.channels, *layer.kernel_size
        self.sizes = s = sizes_of((batch_size, self.channels, height, width), shape, lanes)
        self._call, self.flip, self.batch_size = call, layer.flip_kernel, batch_size
        self.subgradient = layer.subgradient or 0.0
        self.parameter_shapes: list[tuple[int, ...]] = [shape, (layer.out_channels,)]
        self.out = Activation((s.out_height, s.out_width, s.out_channels))
        self.multiplications, self.partial_sums = s.multiplications, s.grad_weight_layout.numel
        self.out_is_padded = s.out_channels != s.out_channels_padded
        self.has_border_in_x = False  # True if the input, and its gradient, lie in memory with the padding

    @property
    def takes_border(self) -> bool:
        """True if the input could have the padding in memory, and its gradient too."""
        return any(self.padding) and self.sizes.in_channels == self.sizes.in_channels_padded

    @property
    def _pads_x(self) -> bool:
        return any(self.padding) and not self.has_border_in_x

    @property
    def _pads_grad_x(self) -> bool:
        return self._pads_x or self.sizes.in_channels != self.sizes.in_channels_padded

    @property
    def _padded_out(self) -> Size:
        return self.sizes.out_height, self.sizes.out_width, self.sizes.out_channels_padded

    @property
    def _padded_x(self) -> Size:
        return self.sizes.height, self.sizes.width, self.channels

    def _image_bytes(self, size: Size) -> int:
        return 4 * self.batch_size * math.prod(size)

    # ------------------------------------------------------------------------------------------- memory

    def saved_buffers(self) -> dict[str, int]:
        padded = {"x_padded": self._image_bytes(self._padded_x)} if self._pads_x else {}
        return padded | {"pool_index": self.batch_size * math.prod(self._padded_out)}

    def packed_buffers(self, split: Split) -> dict[str, int]:
        packed = {"packed_forward": 4 * self.sizes.forward_layout.numel}
        if not self.out_is_padded:
            return packed
        channels = self.sizes.out_channels_padded
        weight = {"weight_forward": 4 * channels * self.sizes.weights_per_output}
        return packed | weight | {"bias": 4 * channels, "out_padded": self._image_bytes(self._padded_out)}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        s, buffers = self.sizes, dict[str, int]()
        if needs_grad_x:
            buffers["packed_backward"] = 4 * s.grad_input_layout.numel
            if self._has_padded_weight(s.in_channels_padded):
                buffers["weight_backward"] = buffers["packed_backward"]
            if self._pads_grad_x:
                buffers["grad_x_padded"] = self._image_bytes((s.height, s.width, s.in_channels_padded))
        if self._copies_x(needs_grad_x):
            channels = s.in_channels if s.vectorizes_outputs else s.in_channels_padded
            buffers["x_copy"] = self._image_bytes((s.height, s.width, channels))
        if self.out_is_padded:
            buffers["grad_out_padded"] = self._image_bytes(self._padded_out)
        return buffers | {
            "grad_weight_parts": 4 * split.num_tasks * s.grad_weight_layout.numel,
            "grad_bias_parts": 4 * split.num_tasks * s.out_channels_padded,
            "conv_scratch": split.num_tasks * s.scratch_bytes,
        }

    def _copies_x(self, needs_grad_x: bool) -> bool:
        """Return True if backward copies x, or x with its padding, into its own order.

        Of the network's input :meth:`input_layouts` does it, unless it has padding."""
        s = self.sizes
        if not needs_grad_x and not any(self.padding):
            return False
        return s.in_channels > 1 if s.vectorizes_outputs else s.in_channels != s.in_channels_padded

    def _has_padded_weight(self, in_channels: int) -> bool:
        return self.out_is_padded or in_channels != self.sizes.in_channels

    # ------------------------------------------------------------------------------------------- weights

    def pack_for_forward(self, at: BlockBuffers) -> list[KernelCall]:
        s = self.sizes
        calls = self._pack(at, s.forward_layout, s.in_channels, "weight_forward", "packed_forward")
        if self.out_is_padded:
            size = 1, 1, s.out_channels
            padded = s.out_channels_padded
            calls.append(copy_images(self._call, at.own("b"), at.own("bias"), (1, 1), size, size, channels=padded))
        return calls

    def pack_for_backward(self, at: BlockBuffers) -> list[KernelCall]:
        s = self.sizes
        if not at.grad_x:
            return []
        return self._pack(at, s.grad_input_layout, s.in_channels_padded, "weight_backward", "packed_backward")

    def _pack(
        self, at: BlockBuffers, layout: sizes.WeightLayout, in_channels: int, padded: str, target: str
    ) -> list[KernelCall]:
        """Pack the weight. With channels of zeros, one task copies it first, and packs all of it."""
        s, arguments = self.sizes, sizes.pack_arguments(self.sizes, layout, self.flip, at.own(target))
        if not self._has_padded_weight(in_channels):
            share = self._channels_per_thread(at.split)
            return [self._call("pack_weight", weight=at.own("w"), share=share, **arguments)]
        kernel = s.kernel_height * s.kernel_width
        size = s.out_channels, 1, s.in_channels * kernel
        copy = copy_images(
            self._call, at.own("w"), at.own(padded), (1, 1), size, size,
            border=(0, s.out_channels_padded - s.out_channels, 0, 0), channels=in_channels * kernel,
        )  # fmt: skip
        arguments |= {"out_channels": s.out_channels_padded, "in_channels": in_channels}
        return [copy, self._call("pack_weight", weight=at.own(padded), share=s.out_channels_padded, **arguments)]

    def _channels_per_thread(self, split: Split) -> int:
        return split_work(self.sizes.out_channels, split.num_threads)[1]

    # --------------------------------------------------------------------------------- forward, backward

    def forward(self, at: BlockBuffers) -> list[KernelCall]:
        calls, images = [], self._images(at)
        if self._pads_x:
            size = self.height, self.width, self.channels
            calls.append(copy_images(self._call, at.x, at.own("x_padded"), images, size, size, border=self.padding))
        out = at.own("out_padded") if self.out_is_padded else at.out
        call = self._call(
            "conv_pool_forward", x=at.own("x_padded") if self._pads_x else at.x,
            packed_weight=at.own("packed_forward"), bias=at.own("bias" if self.out_is_padded else "b"), out=out,
            pool_index=at.own("pool_index"), share=at.split.images_per_task * self.sizes.out_height,
            **sizes.forward_sizes(self.sizes),
        )  # fmt: skip
        calls.append(call)
        if self.out_is_padded:
            calls.append(copy_images(self._call, out, at.out, images, self._out_size, self._padded_out))
        return calls  # eq. (16), (17)

    @property
    def _out_size(self) -> Size:
        height, width, _ = self._padded_out
        return height, width, self.sizes.out_channels

    def _images(self, at: BlockBuffers) -> tuple[int, int]:
        return self.batch_size, at.split.images_per_task

    def backward(self, at: BlockBuffers) -> list[KernelCall]:
        s, images, calls = self.sizes, self._images(at), list[KernelCall]()
        x, grad_out, grad_x = at.x_backward, at.grad_out, at.grad_x
        if self._pads_x:
            x = at.own("x_padded")
        if self._copies_x(grad_x is not None):
            source, x = x, at.own("x_copy")
            if s.vectorizes_outputs:
                calls.append(copy_to_planes(self._call, source, x, images, self._padded_x))
            else:
                size, channels = self._padded_x, s.in_channels_padded
                calls.append(copy_images(self._call, source, x, images, size, size, channels=channels))
        if self.out_is_padded:
            size, source, grad_out = self._out_size, grad_out, at.own("grad_out_padded")
            calls.append(
                copy_images(self._call, source, grad_out, images, size, size, channels=s.out_channels_padded)
            )
        if grad_x and self._pads_grad_x:
            grad_x = at.own("grad_x_padded")
        call = self._call(
            "conv_pool_backward", x=x, packed_weight=at.own("packed_backward") if grad_x else 0,
            grad_out=grad_out, pool_index=at.own("pool_index"), grad_input=grad_x or 0,
            grad_weight_parts=at.own("grad_weight_parts"), grad_bias_parts=at.own("grad_bias_parts"),
            nonfinite=at.nonfinite, scratch=at.own("conv_scratch"), share=at.split.images_per_task,
            needs_grad_input=grad_x is not None, needs_grad_weight=True,
            **sizes.backward_sizes(s, self.subgradient),
        )  # fmt: skip
        calls.append(call)
        if grad_x and at.grad_x and self._pads_grad_x:
            top, _, left, _ = self.padding
            size, padded = (self.height, self.width, self.channels), (s.height, s.width, s.in_channels_padded)
            calls.append(copy_images(self._call, grad_x, at.grad_x, images, size, padded, origin=(top, left)))
        return calls  # eq. (20), and each task's part of (18), (21)

    def parameter_grads(self, at: BlockBuffers) -> list[KernelCall]:
        parts = at.own("grad_weight_parts"), at.own("grad_bias_parts")
        call = self._call(
            "unpack_reduce_grads", grad_weight=at.own("dw"), grad_bias=at.own("db"), num_parts=at.split.num_tasks,
            share=self._channels_per_thread(at.split), **sizes.unpack_reduce_arguments(self.sizes, self.flip, *parts),
        )  # fmt: skip
        return [call]  # eq. (18), (21)

    def pool_index(self, index: Tensor) -> Tensor:
        """The pool index, (N, H, W, C_out), from its buffer."""
        return index.view(self.batch_size, *self._padded_out)[..., : self.sizes.out_channels]

    def unpack_grads(self, at: BlockBuffers) -> list[KernelCall]:
        return []

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        forward = to_contiguous(x, torch.channels_last)
        return forward, forward if any(self.padding) else to_backward_layout(self.sizes, x)
