"""Sizes and memory layouts of the conv_pool kernels, and the arguments that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from manualgrad.cpu.conv_pool_scratch import KERNEL_COLUMNS_PER_TILE, backward_scratch_bytes
from manualgrad.cpu.signature import Address
from manualgrad.pool_index import AT_ZERO

IMAGES_PER_TASK = 16  # at most: intermediate results stay in cache, and short sums, added at the end, round less
MULTIPLICATIONS_PER_THREAD = 1 << 20  # fewer are done before another thread wakes up
MAX_GRAD_WEIGHT_NUMEL = 1 << 26  # floats of the weight gradients of all tasks together


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

    @cached_property
    def scratch_bytes(self) -> int:
        """Scratch memory of one task of the backward kernel."""
        channels = self.in_channels if self.vectorizes_outputs else self.in_channels_padded
        image_numel = channels * self.height * self.width
        return backward_scratch_bytes(self.out_height * self.out_width, self.out_channels_padded, image_numel)

    @cached_property
    def forward_layout(self) -> WeightLayout:
        """Layout of the forward kernel's weight: (kH, kW, C_in, C_out)."""
        c_out = self.out_channels_padded
        kernel_row = self.kernel_width * self.in_channels * c_out
        return WeightLayout(self.kernel_height * kernel_row, (1, c_out, kernel_row, self.in_channels * c_out))

    @cached_property
    def grad_input_layout(self) -> WeightLayout:
        """Layout of the weight for the input gradient: (C_out, kH, kW, C_in + weight_gap)."""
        return self._input_major_layout(self.in_channels_padded + self.weight_gap)

    @cached_property
    def weight_gap(self) -> int:
        """Floats between the channels of two neighbours in that layout.

        Without it, the weights of a vector of input channels would lie in a quarter of the nearest cache's sets, or
        in fewer, if there are 64 channels or a multiple: the cache would not hold those of a block of outputs."""
        return 0 if self.in_channels_padded % 64 else 16

    def _input_major_layout(self, c_in: int) -> WeightLayout:
        """(C_out, kH, kW, c_in)."""
        per_output = self.kernel_height * self.kernel_width * c_in
        return WeightLayout(self.out_channels_padded * per_output, (per_output, 1, self.kernel_width * c_in, c_in))

    @cached_property
    def grad_weight_layout(self) -> WeightLayout:
        """Layout of one task's weight gradient: (C_in, kH, kW, C_out) if vectorizes_outputs, else (C_out, kH, kW,
        C_in)."""
        if not self.vectorizes_outputs:
            return self._input_major_layout(self.in_channels_padded)
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


def forward_sizes(s: Sizes) -> dict[str, int]:
    """Arguments of ``conv_pool_forward`` that are sizes; a task computes some of N·H_out rows of windows."""
    return {
        "window_rows": s.batch_size * s.out_height,
        "height": s.height,
        "width": s.width,
        "in_channels": s.in_channels,
        "kernel_height": s.kernel_height,
        "kernel_row_numel": s.kernel_width * s.in_channels,
        "out_channels_padded": s.out_channels_padded,
        "out_height": s.out_height,
        "out_width": s.out_width,
    }


def backward_sizes(s: Sizes, subgradient: float) -> dict[str, float]:
    """Arguments of ``conv_pool_backward`` that are sizes and options; a task computes some images."""
    return {
        "scratch_bytes": s.scratch_bytes,
        "batch_size": s.batch_size,
        "height": s.height,
        "width": s.width,
        "in_channels": s.in_channels,
        "in_channels_padded": s.in_channels_padded,
        "weight_gap": s.weight_gap,
        "kernel_height": s.kernel_height,
        "kernel_width": s.kernel_width,
        "out_channels_padded": s.out_channels_padded,
        "out_height": s.out_height,
        "out_width": s.out_width,
        "vectorizes_outputs": s.vectorizes_outputs,
        "at_zero_index": AT_ZERO if subgradient else -1,
        "subgradient": float(subgradient),
    }


def pack_arguments(s: Sizes, layout: WeightLayout, flip: bool, packed: Address) -> dict[str, Address]:
    """Arguments of ``pack_weight`` for a packed weight at ``packed``; a task packs some output channels."""
    return {"packed_origin": _origin(s, layout, flip, packed), **_packed_order(s, layout, flip)}


def unpack_reduce_arguments(
    s: Sizes, flip: bool, grad_weight_parts: Address, grad_bias_parts: Address
) -> dict[str, Address]:
    """Arguments of ``unpack_reduce_grads`` for the parts that ``conv_pool_backward`` has written."""
    layout = s.grad_weight_layout
    return {
        "grad_weight_parts_origin": _origin(s, layout, flip, grad_weight_parts),
        "grad_weight_part_bytes": 4 * layout.numel,
        "grad_bias_parts": grad_bias_parts,
        "grad_bias_part_bytes": 4 * s.out_channels_padded,
        **_packed_order(s, layout, flip),
    }


def _origin(s: Sizes, layout: WeightLayout, flip: bool, packed: Address) -> Address:
    """Address of weight (0, 0, 0, 0), the last of its kernel if that is flipped."""
    _, _, kh, kw = layout.strides
    return packed + 4 * ((s.kernel_height - 1) * kh + (s.kernel_width - 1) * kw) if flip else packed


def _packed_order(s: Sizes, layout: WeightLayout, flip: bool) -> dict[str, int]:
    """Sizes of a weight, and its packed strides in bytes; those of a flipped kernel are negative in kH and kW."""
    c_out, c_in, kh, kw = (4 * stride for stride in layout.strides)
    sign = -1 if flip else 1
    return {
        "out_channels": s.out_channels,
        "in_channels": s.in_channels,
        "kernel_height": s.kernel_height,
        "kernel_width": s.kernel_width,
        "c_out_stride": c_out,
        "c_in_stride": c_in,
        "kh_stride": sign * kh,
        "kw_stride": sign * kw,
    }
