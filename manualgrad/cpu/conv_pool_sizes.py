"""Sizes of what the kernels for P(R(C(x, w) + b)) read and write, in which order it lies, and their arguments.

An address among the arguments is a number, or what becomes one when a number of bytes has been added to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from manualgrad.cpu.kernels.conv_pool_backward import scratch_bytes
from manualgrad.cpu.kernels.conv_pool_grad_weight import FEW_COLUMNS
from manualgrad.cpu.pool_index import ZERO
from manualgrad.cpu.team import float_bits

IMAGES_OF_A_SLOT = (
    16  # at most: what a few images leave stays near, and a sum over few, and then over the slots, rounds less
)
WORTH_A_THREAD = 1 << 20  # multiplications; fewer are done before another thread has woken up
FLOATS_OF_ALL_SLOTS = 1 << 26  # that Δw's sums may take together


@dataclass(frozen=True)
class Order:
    """Weights as a kernel has them: ``floats`` in all, and how many from one k, r, p, q to the next."""

    floats: int
    steps: tuple[int, int, int, int]


@dataclass(frozen=True)
class Sizes:
    """B, R, H, W, K, P+1, Q+1 of x and w; the windows' rows and columns; R and K rounded up to whole vectors."""

    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel_rows: int
    kernel_columns: int
    rows: int
    columns: int
    channels_padded: int
    outputs_padded: int
    few: bool  # so few channels that Δw is better summed over k than over r

    @cached_property
    def multiplications(self) -> int:
        return 4 * self.images * self.rows * self.columns * self.outputs * self.weights_of_one

    @cached_property
    def weights_of_one(self) -> int:
        """Weights of one k."""
        return self.channels * self.kernel_rows * self.kernel_columns

    @property
    def x_channels(self) -> int:
        """Channels of x as the kernel of the derivatives reads it."""
        return self.channels if self.few else self.channels_padded

    @cached_property
    def bytes_of_slot(self) -> int:
        """Scratch of the derivatives."""
        image = self.x_channels * self.height * self.width
        return scratch_bytes(self.rows * self.columns, self.outputs_padded, image)

    @cached_property
    def forward_order(self) -> Order:
        """[p][q][r][k]."""
        k, run = self.outputs_padded, self.kernel_columns * self.channels
        line = run * k
        return Order(self.kernel_rows * line, (1, k, line, self.channels * k))

    @cached_property
    def input_order(self) -> Order:
        """[k][p][q][r], for Δx."""
        r = self.channels_padded
        of_one = self.kernel_rows * self.kernel_columns * r
        return Order(self.outputs_padded * of_one, (of_one, 1, self.kernel_columns * r, r))

    @cached_property
    def sums_order(self) -> Order:
        """[r][p][q][k] with few channels r, else [k][p][q][r]: one slot's sums of Δw."""
        if not self.few:
            return self.input_order
        k, most = self.outputs_padded, FEW_COLUMNS
        run = -(-self.kernel_columns // most) * most
        return Order(self.channels * self.kernel_rows * run * k, (1, self.kernel_rows * run * k, run * k, k))


@lru_cache(256)
def sizes_of(x: tuple[int, ...], w: tuple[int, ...], lanes: int) -> Sizes:
    """Of the shapes (B, R, H, W) and (K, R, P+1, Q+1); raises ValueError where they do not fit, or leave no
    window."""
    if len(x) != 4 or len(w) != 4 or x[1] != w[1] or min(*x[1:], *w) < 1:
        raise ValueError(f"conv_pool: got x of shape {tuple(x)} and w of {tuple(w)}")
    (images, channels, height, width), (outputs, _, p, q) = x, w
    rows, columns = (height - p + 1) // 2, (width - q + 1) // 2
    if rows < 1 or columns < 1:
        raise ValueError(f"conv_pool: no window of 2x2 for a kernel of {p}x{q} on {height}x{width}")
    padded = [-(-count // lanes) * lanes for count in (channels, outputs)]
    return Sizes(images, channels, height, width, outputs, p, q, rows, columns, *padded, 4 * channels <= lanes)


# ---------------------------------------------------------------------------------------------- work, shared


def threads_for(multiplications: int) -> int:
    return min(torch.get_num_threads(), 1 + multiplications // WORTH_A_THREAD)


def slots_for(images: int, threads: int, sums: int) -> int:
    """How many slots share the images, each with so many floats of sums."""
    rounds = -(-images // (threads * IMAGES_OF_A_SLOT))
    return max(1, min(threads * rounds, FLOATS_OF_ALL_SLOTS // max(1, sums)))


def split(count: int, slots: int) -> tuple[int, int]:
    """At most ``slots`` slots, and the share of each, that cover ``count``."""
    share = max(1, -(-count // slots))
    return max(1, -(-count // share)), share


# ------------------------------------------------------------------------------------------------ arguments


def forward_arguments(s: Sizes, share: int, x: Any, kernel: Any, b: Any, out: Any, codes: Any) -> list[Any]:
    """Of ``forward``; a slot computes ``share`` rows of windows, of all images together."""
    return [
        x, kernel, b, out, codes, s.images * s.rows, share,
        s.height, s.width, s.channels, s.kernel_rows, s.kernel_columns * s.channels, s.outputs_padded,
        s.rows, s.columns,
    ]  # fmt: skip


def backward_arguments(
    s: Sizes, share: int, x: Any, kernel: Any, g: Any, codes: Any, dx: Any, dw: Any, db: Any, odd: Any, scratch: Any,
    for_x: bool, for_w: bool, subgradient: float,
) -> list[Any]:  # fmt: skip
    """Of ``backward``; a slot computes ``share`` images."""
    return [
        x, kernel, g, codes, dx, dw, db, odd, scratch, s.bytes_of_slot,
        s.images, share, s.height, s.width, s.x_channels, s.channels_padded, s.kernel_rows, s.kernel_columns,
        s.outputs_padded, s.rows, s.columns, for_x, for_w, s.few, ZERO if subgradient else -1, float_bits(subgradient),
    ]  # fmt: skip


def arrange_arguments(s: Sizes, order: Order, flip: bool, share: int, w: Any, kernel: Any) -> list[Any]:
    """Of ``arrange``, which puts w into an order; a slot moves ``share`` k."""
    first, steps = _from(s, order, flip, kernel)
    return [w, first, s.outputs, share, s.channels, s.kernel_rows, s.kernel_columns, *steps, 1, 0, 0, 0, 0]


def collect_arguments(
    s: Sizes, flip: bool, share: int, slots: int, dw: Any, dw_sums: Any, db: Any, db_sums: Any
) -> list[Any]:
    """Of ``collect``, which adds up what the slots found; without Δw where ``dw`` is 0."""
    order = s.sums_order
    first, steps = _from(s, order, flip, dw_sums)
    channels = 0 if type(dw) is int and dw == 0 else s.channels
    return [
        dw, first, s.outputs, share, channels, s.kernel_rows, s.kernel_columns, *steps, slots, 4 * order.floats,
        db, db_sums, s.outputs_padded,
    ]  # fmt: skip


def _from(s: Sizes, order: Order, flip: bool, address: Any) -> tuple[Any, tuple[int, ...]]:
    """Where k, r, p and q are all 0, and the bytes from one to the next."""
    k, r, p, q = (4 * step for step in order.steps)
    if not flip:
        return address, (k, r, p, q)
    return address + ((s.kernel_rows - 1) * p + (s.kernel_columns - 1) * q), (k, r, -p, -q)
