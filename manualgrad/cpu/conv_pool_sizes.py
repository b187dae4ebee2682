"""Sizes and memory layouts of the conv_pool kernels, and their argument lists.

An address among the arguments is an integer, or a ``BufferRef`` that becomes one when a program runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from manualgrad.cpu.conv_pool_scratch import KERNEL_COLUMNS_PER_TILE, backward_scratch_bytes
from manualgrad.cpu.program import BufferRef
from manualgrad.cpu.team import float_bits
from manualgrad.pool_index import AT_ZERO

IMAGES_PER_TASK = 16  # at most: intermediate results stay in cache, and short sums, added at the end, round less
MULTIPLICATIONS_PER_THREAD = 1 << 20  # fewer are done before another thread wakes up
MAX_GRAD_WEIGHT_NUMEL = 1 << 26  # floats of the weight gradients of all tasks together

Address = int | BufferRef


@dataclass(frozen=True)
class WeightLayout:
    """Packed weights: ``numel`` floats, and the strides in floats of C_out, C_in, kH and kW."""

    numel: int
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of x (N, C_in, H, W), weight (C_out, C_in, kH, kW) and out (N, C_out, H_out, W_out).

    Padded channels are rounded up to whole vectors. ``vectorizes_outputs`` is True if C_in is so small that vectors
    of the weight gradient run over output channels rather than kW·C_in."""

    batch_size: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel_height: int
    kernel_width: int
    out_height: int
    out_width: int
    in_channels_padded: int
    out_channels_padded: int
    vectorizes_outputs: bool

    @cached_property
    def multiplications(self) -> int:
        """Multiplications of the forward pass."""
        return 4 * self.batch_size * self.out_height * self.out_width * self.out_channels * self.weights_per_output

    @cached_property
    def weights_per_output(self) -> int:
        """Weights of one output channel."""
        return self.in_channels * self.kernel_height * self.kernel_width

    @property
    def x_channels(self) -> int:
        """Channels of x as the backward kernel reads it."""
        return self.in_channels if self.vectorizes_outputs else self.in_channels_padded

    @cached_property
    def scratch_bytes(self) -> int:
        """Scratch memory of one task of the backward kernel."""
        image_numel = self.x_channels * self.height * self.width
        return backward_scratch_bytes(self.out_height * self.out_width, self.out_channels_padded, image_numel)

    @cached_property
    def forward_layout(self) -> WeightLayout:
        """Layout of the forward kernel's weight: (kH, kW, C_in, C_out)."""
        c_out = self.out_channels_padded
        kernel_row = self.kernel_width * self.in_channels * c_out
        return WeightLayout(self.kernel_height * kernel_row, (1, c_out, kernel_row, self.in_channels * c_out))

    @cached_property
    def grad_input_layout(self) -> WeightLayout:
        """Layout of the weight for the input gradient: (C_out, kH, kW, C_in)."""
        c_in = self.in_channels_padded
        per_output = self.kernel_height * self.kernel_width * c_in
        return WeightLayout(self.out_channels_padded * per_output, (per_output, 1, self.kernel_width * c_in, c_in))

    @cached_property
    def grad_weight_layout(self) -> WeightLayout:
        """Layout of one task's weight gradient: (C_in, kH, kW, C_out) if vectorizes_outputs, else (C_out, kH, kW,
        C_in)."""
        if not self.vectorizes_outputs:
            return self.grad_input_layout
        c_out, tile = self.out_channels_padded, KERNEL_COLUMNS_PER_TILE
        kernel_row = -(-self.kernel_width // tile) * tile * c_out
        per_input = self.kernel_height * kernel_row
        return WeightLayout(self.in_channels * per_input, (1, per_input, kernel_row, c_out))


@lru_cache(256)
def sizes_of(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], lanes: int) -> Sizes:
    """Return the sizes for these shapes, (N, C_in, H, W) and (C_out, C_in, kH, kW), and vectors of ``lanes`` floats.

    Raises:
        ValueError: the shapes do not fit each other, or there is no window.
    """
    if (
        len(x_shape) != 4
        or len(weight_shape) != 4
        or x_shape[1] != weight_shape[1]
        or min(*x_shape[1:], *weight_shape) < 1
    ):
        raise ValueError(
            f"conv_pool: expected x (N, C_in, H, W) and weight (C_out, C_in, kH, kW), got shapes "
            f"{tuple(x_shape)} and {tuple(weight_shape)}"
        )
    (batch_size, c_in, height, width), (c_out, _, kernel_height, kernel_width) = x_shape, weight_shape
    out_height, out_width = (height - kernel_height + 1) // 2, (width - kernel_width + 1) // 2
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"conv_pool: expected an output of at least one 2x2 window, got a {kernel_height}x{kernel_width} "
            f"kernel on {height}x{width}"
        )
    return Sizes(
        batch_size, c_in, height, width, c_out, kernel_height, kernel_width, out_height, out_width,
        -(-c_in // lanes) * lanes, -(-c_out // lanes) * lanes, 4 * c_in <= lanes,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- division of work


def num_threads_for(multiplications: int) -> int:
    return min(torch.get_num_threads(), 1 + multiplications // MULTIPLICATIONS_PER_THREAD)


def num_tasks_for(batch_size: int, num_threads: int, grad_weight_numel: int) -> int:
    """Return the largest number of tasks of the backward kernel; each has a weight gradient of its own."""
    rounds = -(-batch_size // (num_threads * IMAGES_PER_TASK))
    return max(1, min(num_threads * rounds, MAX_GRAD_WEIGHT_NUMEL // max(1, grad_weight_numel)))


def split_work(count: int, max_tasks: int) -> tuple[int, int]:
    """Divide ``count`` items among at most ``max_tasks`` tasks: the number of tasks, and the share of each."""
    share = max(1, -(-count // max_tasks))
    return max(1, -(-count // share)), share


# ------------------------------------------------------------------------------------------------- arguments


def forward_arguments(
    s: Sizes, share: int, x: Address, weight: Address, bias: Address, out: Address, pool_index: Address
) -> list[Any]:
    """Arguments of ``conv_pool_forward``; a task computes ``share`` of N·H_out rows of windows."""
    return [
        x, weight, bias, out, pool_index, s.batch_size * s.out_height, share,
        s.height, s.width, s.in_channels, s.kernel_height, s.kernel_width * s.in_channels, s.out_channels_padded,
        s.out_height, s.out_width,
    ]  # fmt: skip


def backward_arguments(
    s: Sizes, share: int, x: Address, weight: Address, grad_out: Address, pool_index: Address, grad_input: Address,
    grad_weight: Address, grad_bias: Address, nonfinite: Address, scratch: Address,
    needs_grad_input: bool, needs_grad_weight: bool, subgradient: float,
) -> list[Any]:  # fmt: skip
    """Arguments of ``conv_pool_backward``; a task computes ``share`` images."""
    return [
        x, weight, grad_out, pool_index, grad_input, grad_weight, grad_bias, nonfinite, scratch, s.scratch_bytes,
        s.batch_size, share, s.height, s.width, s.x_channels, s.in_channels_padded, s.kernel_height, s.kernel_width,
        s.out_channels_padded, s.out_height, s.out_width, needs_grad_input, needs_grad_weight, s.vectorizes_outputs,
        AT_ZERO if subgradient else -1, float_bits(subgradient),
    ]  # fmt: skip


def pack_arguments(
    s: Sizes, layout: WeightLayout, flip: bool, share: int, weight: Address, packed: Address
) -> list[Any]:
    """Arguments of ``pack_weight``; a task packs ``share`` output channels."""
    first, strides = _first_and_strides(s, layout, flip, packed)
    return [
        weight, first, s.out_channels, share, s.in_channels, s.kernel_height, s.kernel_width, *strides, 1, 0, 0, 0, 0
    ]  # fmt: skip


def unpack_reduce_arguments(
    s: Sizes, flip: bool, share: int, num_sums: int, grad_weight: Address, grad_weight_sums: Address,
    grad_bias: Address, grad_bias_sums: Address,
) -> list[Any]:  # fmt: skip
    """Arguments of ``unpack_reduce_grads``, which adds up ``num_sums`` gradients; no weight gradient if its address
    is 0."""
    layout = s.grad_weight_layout
    first, strides = _first_and_strides(s, layout, flip, grad_weight_sums)
    in_channels = 0 if grad_weight == 0 else s.in_channels
    return [
        grad_weight, first, s.out_channels, share, in_channels, s.kernel_height, s.kernel_width, *strides, num_sums,
        4 * layout.numel, grad_bias, grad_bias_sums, s.out_channels_padded,
    ]  # fmt: skip


def _first_and_strides(
    s: Sizes, layout: WeightLayout, flip: bool, packed: Address
) -> tuple[Address, tuple[int, int, int, int]]:
    """Address of the first weight, and the strides in bytes, which are negative in kH and kW for a flipped kernel."""
    c_out, c_in, kh, kw = (4 * stride for stride in layout.strides)
    if not flip:
        return packed, (c_out, c_in, kh, kw)
    return packed + ((s.kernel_height - 1) * kh + (s.kernel_width - 1) * kw), (c_out, c_in, -kh, -kw)
