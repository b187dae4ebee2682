"""Windows of a convolution on its images, and the taps that they read: the forward pass, and the input gradient.

Tensors are channels last: x (N, H, W, C_in), g (N, H_out, W_out, C_out). The formulas are in ``ops/conv2d.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory

TILE_ROWS, TAP_WORDS, ENTRY_BYTES = 6, 3, 16  # as in kernels/conv2d_tile.py and conv2d_windows.py, which need LLVM
MAX_CHUNK = 768  # windows
MAX_PLACES = 400  # windows of an image, up to which they are ordered by their taps
MAX_BLOCK_IMAGES = 8
MIN_CHUNK, MIN_GRAD_CHUNK = 96, 252
CHUNK_BYTES = {8: 320 << 10, 16: 1280 << 10}  # by lanes: bytes of x that the windows of a chunk read, as measured
GRAD_CHUNK_BYTES = {8: 0, 16: 1 << 20}
Tap = tuple[int, int, int]  # row and column offset of its pixel, byte offset of its weight


@dataclass(frozen=True)
class Grid:
    """Windows (rows, columns) on each of ``batch`` images x (N, height, width, channels), and their taps.

    ``step`` is the distance of neighbouring windows. Of each tap's pixel the kernel reads a run of ``outer`` pixels'
    ``inner`` channels."""

    batch: int
    image: tuple[int, int, int]
    rows: int
    columns: int
    step: tuple[int, int]
    taps: tuple[Tap, ...]
    outer: int
    inner: int

    @property
    def run(self) -> int:
        return self.outer * self.inner

    @property
    def windows(self) -> int:
        return self.batch * self.rows * self.columns

    def chunk(self, lanes: int, share: int) -> int:
        """Windows that a task with ``share`` windows computes at a time."""
        window_bytes = 4 * self.image[2] * self.step[0] * self.step[1]
        return _whole_tiles(min(max(CHUNK_BYTES[lanes] // window_bytes, MIN_CHUNK), MAX_CHUNK, share))

    def grad_weight_chunk(self, lanes: int) -> int:
        """Windows that ``conv2d_grad_weight`` takes at a time: all of them in chunks of nearly equal sizes."""
        largest = min(max(GRAD_CHUNK_BYTES[lanes] // (4 * self.image[2]), MIN_GRAD_CHUNK), MAX_CHUNK)
        return _whole_tiles(-(-self.windows // max(1, -(-self.windows // largest))) or 1)

    def images_per_block(self, window_parts: int) -> int:
        """Images of a block whose windows are ordered by their taps, or 0 if they are in the order of images.

        Windows at the border have fewer taps, so each of ``window_parts`` tasks must get whole images."""
        images, rest = divmod(self.batch, window_parts)
        if rest or not images or self.rows * self.columns > MAX_PLACES or not self.has_border:
            return 0
        return max(n for n in range(1, MAX_BLOCK_IMAGES + 1) if images % n == 0)

    @cached_property
    def can_leave_out_pixels(self) -> bool:
        """True if some pixels are outside the image, but of no window all of them, and rows are no runs.

        Then every window has a product with a pixel inside, which is not finite if its gradient is not."""
        sets = [*self._tap_sets(0), *self._tap_sets(1)]
        return self.outer == 1 and self.has_border and all(map(any, sets))

    @cached_property
    def has_border(self) -> bool:
        """True if a window has a tap outside the image."""
        return not all(all(inside) for axis in (0, 1) for inside in self._tap_sets(axis))

    def _tap_sets(self, axis: int) -> list[tuple[bool, ...]]:
        """For each row of windows, or column (``axis`` 1), whether the pixels of the taps are inside the image."""
        step, size = self.step[axis], self.image[axis]
        return [
            tuple(0 <= n * step + tap[axis] < size for tap in self.taps)
            for n in range((self.rows, self.columns)[axis])
        ]

    def places(self) -> Tensor:
        """(rows·columns, 2): row and column of an image's windows, those with the same taps one behind the other."""
        rows, columns = self._tap_sets(0), self._tap_sets(1)
        places = sorted(product(range(self.rows), range(self.columns)), key=lambda p: (rows[p[0]], columns[p[1]], p))
        return int64_tensor(list(chain.from_iterable(places)))

    def arguments(self, taps: Tensor, zeros: Tensor) -> dict[str, int]:
        height, width, channels = self.image
        return {
            "zeros": zeros.data_ptr(), "taps": taps.data_ptr(), "num_taps": len(self.taps), "height": height,
            "width": width, "image_bytes": 4 * height * width * channels, "row_bytes": 4 * width * channels,
            "pixel_bytes": 4 * channels, "row_step": self.step[0], "column_step": self.step[1],
            "grid_rows": self.rows, "grid_columns": self.columns, "windows": self.windows,
        }  # fmt: skip

    def constants(self) -> tuple[Tensor, Tensor]:
        """The taps, and a pixel of zeros, or ``outer`` of them, and TILE_ROWS zeros more."""
        return (
            int64_tensor(list(chain.from_iterable(self.taps))),
            memory.new(self.outer * self.image[2] + TILE_ROWS, zeros=True),
        )


def _whole_tiles(windows: int) -> int:
    """The smallest number of whole tiles' windows that is not less."""
    return -(-windows // TILE_ROWS) * TILE_ROWS


def int64_tensor(numbers: Sequence[int]) -> Tensor:
    return memory.new(len(numbers), dtype=torch.int64).copy_(torch.tensor(numbers, dtype=torch.int64, device="cpu"))


def merges_columns(channels: int, geometry: Any) -> bool:
    """Return True if a kernel row is one run: kW pixels' channels. The image is padded for it, left and right."""
    windows = geometry.windows
    _, _, left, right = windows.padding
    if geometry.groups > 1 or windows.dilation[1] > 1 or windows.kernel_size[1] == 1:
        return False
    return channels < 16 or left == right == 0


def forward_grid(
    x_shape: tuple[int, ...], weight_strides: tuple[int, ...], geometry: Any
) -> tuple[Grid, int, tuple[int, int]]:
    """Windows of (1) on x (N, C_in, H, W), the byte offset from a tap's weight to that of the next column, and the
    columns of zeros that x must have left and right."""
    windows = geometry.windows
    (kernel_height, kernel_width), (d1, d2) = windows.kernel_size, windows.dilation
    top, _, left, right = windows.padding
    batch, channels, height, width = x_shape
    kh_bytes, kw_bytes = (4 * stride for stride in weight_strides[2:])
    origin = 0
    if geometry.flip_kernel:
        origin = (kernel_height - 1) * kh_bytes + (kernel_width - 1) * kw_bytes
        kh_bytes, kw_bytes = -kh_bytes, -kw_bytes
    columns, outer, margin = kernel_width, 1, (0, 0)
    if merges_columns(channels, geometry):
        columns, outer, margin, width, left = 1, kernel_width, (left, right), width + left + right, 0
    taps = tuple(
        (p * d1 - top, q * d2 - left, origin + p * kh_bytes + q * kw_bytes)
        for p, q in product(range(kernel_height), range(columns))
    )
    rows, columns = windows.output_size(*geometry.input_size)
    image, inner = (height, width, channels), channels // geometry.groups
    return Grid(batch, image, rows, columns, windows.stride, taps, outer, inner), kw_bytes, margin


def grad_input_grids(
    g_shape: tuple[int, ...], weight_strides: tuple[int, ...], geometry: Any
) -> list[tuple[int, int, Grid]]:
    """The pixels of (2) as windows on g (N, C_out, H_out, W_out): those of row i and column j modulo the strides have
    the same taps. Returns i, j and their windows, without those that have no tap."""
    windows, grids = geometry.windows, []
    (s1, s2), (d1, d2), (top, _, left, _) = windows.stride, windows.dilation, windows.padding
    kernel_height, kernel_width = windows.kernel_size
    batch, channels, *size = g_shape
    height, width = geometry.input_size
    for i, j in product(range(min(s1, height)), range(min(s2, width))):
        taps = []
        for p, q in product(range(kernel_height), range(kernel_width)):
            (row, row_rest), (column, column_rest) = divmod(i + top - p * d1, s1), divmod(j + left - q * d2, s2)
            if row_rest == column_rest == 0:
                kh, kw = (kernel_height - 1 - p, kernel_width - 1 - q) if geometry.flip_kernel else (p, q)
                taps.append((row, column, 4 * (kh * weight_strides[2] + kw * weight_strides[3])))
        if taps:
            rows, columns = -(-(height - i) // s1), -(-(width - j) // s2)
            image, run = (size[0], size[1], channels), channels // geometry.groups
            grids.append((i, j, Grid(batch, image, rows, columns, (1, 1), tuple(taps), 1, run)))
    return grids
