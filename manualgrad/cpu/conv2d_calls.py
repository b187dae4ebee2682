"""Kernel calls of a general convolution on one grid of windows, for programs: sizes of buffers, and arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from torch import Tensor

from manualgrad.cpu.conv2d_grids import ENTRY_BYTES, TILE_ROWS, Grid
from manualgrad.cpu.signature import Address, KernelCall

PANEL_VECTORS = {8: 2, 16: 4}  # by lanes
BLOCK_K = {8: 256, 16: 128}  # rows of a panel that stay in the nearest cache, 16 or 32 KB
FLOAT_BYTES = 4
BLOCK_PIECE = 1152  # floats of a channel that are packed at a time
MIN_BLOCK_K = 64  # a longer sum is taken in two blocks at least, and rounds less
Call = Callable[..., KernelCall]  # from a kernel's name and arguments


@dataclass(frozen=True)
class WeightOrder:
    """Strides of a weight in bytes: of groups, of the result's channels, and of the two parts of a run.

    ``positions`` is the number of positions kH·kW of the kernel, of which a grid may have fewer as taps."""

    group_bytes: int
    channel_bytes: int
    outer_bytes: int
    inner_bytes: int
    positions: int

    def arguments(self) -> dict[str, int]:
        """The strides, as kernels have them."""
        return {name: stride for name, stride in vars(self).items() if name != "positions"}


class WindowSplit(NamedTuple):
    """Division of a grid among tasks: windows of a task, parts of the windows, and panels of a task."""

    window_share: int
    window_parts: int
    panel_share: int

    def num_tasks(self, panels: int) -> int:
        """Number of tasks for all windows and ``panels``."""
        return self.window_parts * -(-panels // self.panel_share)


class ResultStrides(NamedTuple):
    """Bytes in the result from a window to that of the next image, row and column."""

    out_image_bytes: int
    out_row_bytes: int
    out_column_bytes: int


@dataclass(frozen=True)
class GridCalls:
    """Kernel calls for the windows of ``grid``, and ``channels`` of each of ``groups`` in the result.

    A call of ``conv2d`` or ``conv2d_grad_weight`` takes ``chunk`` windows at a time. The addresses of taps, zeros and
    places are in the calls, so this object has to live as long as they do."""

    lanes: int
    grid: Grid
    order: WeightOrder
    groups: int
    channels: int

    @cached_property
    def constants(self) -> tuple[Tensor, Tensor]:
        return self.grid.constants()

    @cached_property
    def places(self) -> Tensor:
        return self.grid.places()

    @property
    def panel_floats(self) -> int:
        return PANEL_VECTORS[self.lanes] * self.lanes

    @property
    def vectors(self) -> int:
        return -(-self.channels // self.lanes)

    @property
    def panels(self) -> int:
        """Panels of all groups."""
        return self.groups * -(-self.channels // self.panel_floats)

    @property
    def packed_bytes(self) -> int:
        return 4 * self.groups * self.vectors * self.lanes * (len(self.grid.taps) * self.grid.run + 1)

    def table_bytes(self, chunk: int) -> int:
        """Bytes of one task's table."""
        return 8 * (len(self.grid.taps) + 1) * chunk

    def lists_bytes(self, chunk: int) -> int:
        """Bytes of one task's lists of pixels."""
        return len(self.grid.taps) * (ENTRY_BYTES * chunk + 8)

    def panel_bytes(self, chunk: int) -> int:
        """Bytes of a panel's channels of one task's windows."""
        return 4 * chunk * self.panel_floats

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """``inner_per_block`` and ``neighbours`` of ``kernels/pack_panels.py`` for the order of the weight.

        Raises:
            ValueError: neighbours in memory are neither numbers of a channel nor channels.
        """
        order, inner = self.order, self.grid.inner
        block = max(self.lanes, BLOCK_PIECE // order.positions // self.lanes * self.lanes)
        if inner <= block and self._are_neighbours(inner):
            return inner, order.positions
        if order.inner_bytes == FLOAT_BYTES:
            return block, 1
        if order.inner_bytes == FLOAT_BYTES * order.positions:
            return block, order.positions
        if order.channel_bytes == FLOAT_BYTES:
            return block, 0
        if self._are_neighbours(1):
            return 1, order.positions
        raise ValueError(f"neither a channel's weights nor the channels of one weight are neighbours: {order}")

    def _are_neighbours(self, inner: int) -> bool:
        """Return True if a channel's weights for the first ``inner`` numbers are its first positions·inner floats."""
        last = max(
            tap_offset + outer * self.order.outer_bytes + n * self.order.inner_bytes
            for (_, _, tap_offset), outer, n in product(self.grid.taps, range(self.grid.outer), range(inner))
        )
        return last < FLOAT_BYTES * self.order.positions * inner

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch memory of one task that packs or unpacks."""
        return FLOAT_BYTES * self.lanes * -(-math.prod(self.blocks) // self.lanes) * self.lanes

    def pack(
        self, call: Call, share: int, *, weight: Address, bias: Address | None, packed: Address, nonfinite: Address,
        scratch: Address,
    ) -> KernelCall:  # fmt: skip
        """Pack ``share`` panels per task."""
        return call(
            "pack_panels", weight=weight, bias=0 if bias is None else bias, has_bias=bias is not None,
            packed_weight=packed, nonfinite=nonfinite, **self._order_arguments(share, scratch),
        )  # fmt: skip

    def unpack(
        self, call: Call, share: int, *, sums: Address, grad_weight: Address, scratch: Address, nonfinite: Address
    ) -> KernelCall:  # fmt: skip
        """Store ``share`` panels per task in the weight gradient."""
        return call(
            "unpack_panels",
            partial_sums=sums,
            grad_weight=grad_weight,
            nonfinite=nonfinite,
            **self._order_arguments(share, scratch),
        )

    def _order_arguments(self, share: int, scratch: Address) -> dict[str, Address]:
        taps, _ = self.constants
        return {
            "taps": taps.data_ptr(), "num_taps": len(self.grid.taps), "groups": self.groups, "share": share,
            "channels": self.channels, "outer": self.grid.outer, "inner": self.grid.inner,
            "inner_per_block": self.blocks[0], "neighbours": self.blocks[1], "scratch": scratch,
            **self.order.arguments(),
        }  # fmt: skip

    def conv2d(
        self, call: Call, split: WindowSplit, chunk: int, strides: ResultStrides, *, x: Address,
        packed: Address, out: Address, table: Address, sums: Address, has_relu: bool = False,
        skips_zeros: bool = True,
    ) -> KernelCall:  # fmt: skip
        """Compute the result. With ``skips_zeros`` it is right only if all weights are finite."""
        grid, block = self.grid, self._block_k
        images = grid.images_per_block(split.window_parts) if skips_zeros else 0
        taps_per_block = _even_block(len(grid.taps), max(1, block // grid.run))
        return call(
            "conv2d", x=x, packed_weight=packed, out=out, table=table, partial_sums=sums, has_relu=has_relu,
            skips_zeros=skips_zeros, places=self.places.data_ptr() if images else 0, images_per_block=images,
            groups=self.groups, channels=self.channels, run=grid.run, taps_per_block=taps_per_block,
            run_per_block=_even_block(grid.run, block), chunk=chunk, **split._asdict(), **strides._asdict(),
            **grid.arguments(*self.constants),
        )  # fmt: skip

    @property
    def _block_k(self) -> int:
        rows = len(self.grid.taps) * self.grid.run
        return min(BLOCK_K[self.lanes], max(MIN_BLOCK_K, -(-rows // 2)))

    @property
    def units(self) -> int:
        """Tiles of the weight gradient."""
        return self.panels * len(self.grid.taps) * -(-self.grid.run // TILE_ROWS)

    @property
    def unit_bytes(self) -> int:
        """Bytes of a tile of the weight gradient."""
        return 4 * TILE_ROWS * self.panel_floats

    def grad_weight(
        self, call: Call, share: int, chunk: int, *, x: Address, grad_out: Address, lists: Address, sums: Address,
        packed_grads: Address, lists_zeros: bool, grad_bias: Address | None,
    ) -> KernelCall:  # fmt: skip
        """Compute ``share`` tiles of the weight gradient per task, and the bias gradient if it is not None."""
        return call(
            "conv2d_grad_weight", x=x, grad_out=grad_out, lists=lists, partial_sums=sums, packed_grads=packed_grads,
            lists_zeros=lists_zeros, has_bias=grad_bias is not None, grad_bias=0 if grad_bias is None else grad_bias,
            units=self.units, share=share, groups=self.groups, channels=self.channels, run=self.grid.run, chunk=chunk,
            **self.grid.arguments(*self.constants),
        )  # fmt: skip


def _even_block(count: int, largest: int) -> int:
    """Return the size of blocks of at most ``largest`` that divide ``count`` most evenly."""
    return -(-count // -(-count // largest))
