"""A convolution on CUDA with ReLU, where there is one, and a pooling of any windows behind it.

The convolution is that of a layer without pooling. P has the kernels that it has as a layer of its own, one launch
in forward and one in backward.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from manualgrad.cuda.max_pool2d import BLOCK, pool_constants
from manualgrad.network.cuda_conv_block import ConvBlock
from manualgrad.network.cuda_launches import Launch
from manualgrad.network.device import Activation, BlockBuffers, Split, Unsupported
from manualgrad.network.layers import POOL, Conv, MaxPool
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry


def make_conv_block(device: Any, layer: Conv, x: Activation) -> ConvBlock:
    """The block for a convolution on ``x``; raise Unsupported if no kernel computes it."""
    if layer.pool in (None, POOL):
        return ConvBlock(device, layer, x)
    return PooledConvBlock(device, layer, layer.pool, x)


class PooledConvBlock(ConvBlock):
    """P∘C or P∘R∘C. The buffer "unpooled" has the input of P in forward, and the gradient of that in backward."""

    index_name = "relu_index"  # "pool_index" is that of P

    def __init__(self, device: Any, layer: Conv, pool: MaxPool, x: Activation) -> None:
        super().__init__(device, replace(layer, pool=None), x)
        self.pooling = _pooling(pool, (layer.out_channels, *self.z_size))
        self.out = Activation((*self.pooling.output_size, layer.out_channels))

    def _sizes(self) -> dict[str, Any]:
        return super()._sizes() | {"CHANNEL_MAJOR": False}

    def saved_buffers(self) -> dict[str, int]:
        return super().saved_buffers() | {"pool_index": self.batch_size * math.prod(self.out.shape)}

    def packed_buffers(self, split: Split | None = None) -> dict[str, int]:
        return super().packed_buffers(split) | {"unpooled": 4 * self.batch_size * math.prod(self.conv_out)}

    def forward(self, at: BlockBuffers) -> list[Launch]:
        numel = self.batch_size * math.prod(self.out.shape)
        pool = self._pool(
            "max_pool2d_forward", numel, not self.is_channel_major, out=at.out, x=at.own("unpooled"),
            pool_index=at.own("pool_index"), **_strides("s", self.conv_out, channel_major=False),
        )  # fmt: skip
        return [*super().forward(self._of_conv(at)), pool]  # eq. (4)

    def backward(self, at: BlockBuffers) -> list[Launch]:
        numel = self.batch_size * math.prod(self.conv_out)
        strides = [_strides(name, self.out.shape, self.is_channel_major) for name in ("g", "k")]
        pool = self._pool(
            "max_pool2d_backward", numel, True, grad_x=at.own("unpooled"), g=at.grad_out,
            pool_index=at.own("pool_index"), **strides[0], **strides[1],
        )  # fmt: skip
        return [pool, *super().backward(self._of_conv(at))]  # eq. (20)

    def grad_input(self, at: BlockBuffers) -> Launch:
        return super().grad_input(self._of_conv(at))

    def _of_conv(self, at: BlockBuffers) -> BlockBuffers:
        """The buffers of the convolution."""
        return replace(at, out=at.own("unpooled"), grad_out=at.own("unpooled"))

    def _pool(self, kernel: str, numel: int, channels_last: bool, **arguments: Any) -> Launch:
        launch: Launch = self._call(
            kernel, (-(-numel // BLOCK),), NUMEL=numel, subgradient=0.0, RELU=False, WIDE=False, **arguments,
            **pool_constants(self.pooling, self.conv_out[2], channels_last),
        )  # fmt: skip
        return launch


def _pooling(pool: MaxPool, shape: tuple[int, int, int]) -> MaxPool2dGeometry:
    """The geometry of ``pool`` on (C, H, W); raise Unsupported if no kernel computes it."""
    try:
        pooling = make_max_pool2d_geometry(
            shape, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        )
    except (TypeError, ValueError) as error:  # the layer raises it
        raise Unsupported(f"a layer refuses its input: {error}") from None
    if pooling.index_dtype is not torch.uint8 or pool.return_indices:
        raise Unsupported("no kernel computes a pooling with return_indices or windows of more than 256 places")
    return pooling


def _strides(prefix: str, shape: tuple[int, ...], channel_major: bool) -> dict[str, int]:
    """Strides of (N, H, W, C), by the names of a kernel's arguments, in the order of memory or channel-major."""
    height, width, channels = shape
    image = height * width * channels
    row, column, channel = (width, 1, height * width) if channel_major else (width * channels, channels, 1)
    return {f"{prefix}n": image, f"{prefix}h": row, f"{prefix}w": column, f"{prefix}c": channel}
