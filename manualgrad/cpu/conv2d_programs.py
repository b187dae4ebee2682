"""Programs of the kernels for a general convolution: sizes, division of work, and the arguments that follow from them.

A program is made once for each geometry, shape and number of threads. Weights are packed in its first region, since a
step of training changes them all. The formula of each is in ``ops/conv2d.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

TILE_ROWS, TAP_WORDS = 6, 3  # as in kernels/conv2d_windows.py, which needs LLVM
PANEL_VECTORS = {8: 2, 16: 4}  # by lanes
BLOCK_K = {8: 256, 16: 128}  # rows of a panel that stay in the nearest cache, 16 or 32 KB
CHUNK_BYTES = 160 << 10  # of x, that the windows of a chunk read
MULTIPLICATIONS_PER_THREAD = 1 << 20  # fewer are done before another thread wakes up
Tap = tuple[int, int, int]  # row and column offset of its pixel, byte offset of its weight


@dataclass(frozen=True)
class ConvProgram:
    """A program, the layout of its workspace, and tensors whose addresses are in it."""

    program: Program
    layout: WorkspaceLayout
    constants: tuple[Tensor, ...]

    def run(self, *addresses: int) -> Tensor:
        """Run the program on tensors at ``addresses``, in the order of its names, and return its workspace."""
        workspace = self.layout.allocate()
        self.program.run((*addresses, *self.layout.addresses(workspace)))
        return workspace

    def has_finite_weights(self, workspace: Tensor) -> bool:
        """Return True if all weights that were packed are finite."""
        flags = self.layout.buffer(workspace, "nonfinite", (-1,))
        return not any(map(math.isnan, flags.tolist()))


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

    def chunk(self, share: int) -> int:
        """Windows that a task with ``share`` windows computes at a time."""
        window_bytes = 4 * self.image[2] * self.step[0] * self.step[1]
        chunk = min(max(CHUNK_BYTES // window_bytes, 96), 768, share)
        return -(-chunk // TILE_ROWS) * TILE_ROWS

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
        taps = torch.tensor(self.taps, dtype=torch.int64, device="cpu").view(-1)
        return (
            memory.new(len(taps), dtype=torch.int64).copy_(taps),
            memory.new(self.outer * self.image[2] + TILE_ROWS, zeros=True),
        )


@dataclass(frozen=True)
class WeightOrder:
    """Strides of a weight in bytes: of groups, of the result's channels, and of the two parts of a run."""

    group_bytes: int
    channel_bytes: int
    outer_bytes: int
    inner_bytes: int


def num_threads_for(multiplications: int) -> int:
    return min(torch.get_num_threads(), 1 + multiplications // MULTIPLICATIONS_PER_THREAD)


# ------------------------------------------------------------------------------------------------------ windows


def merges_columns(channels: int, geometry: Any) -> bool:
    """Return True if a kernel row is one run: kW pixels' channels. The image is padded for it, left and right."""
    windows = geometry.windows
    _, _, left, right = windows.padding
    if geometry.groups > 1 or windows.dilation[1] > 1 or windows.kernel_size[1] == 1:
        return False
    return channels < 16 or left == right == 0


def forward_grid(
    x_shape: tuple[int, ...], weight_strides: tuple[int, ...], geometry: Any
) -> tuple[Grid, int]:
    """Windows of (1) on x (N, H, W, C_in), padded if it merges columns, and the byte offset from a tap's weight to that of the next column."""
    windows = geometry.windows
    (kernel_height, kernel_width), (d1, d2) = windows.kernel_size, windows.dilation
    top, _, left, _ = windows.padding
    batch, height, width, channels = x_shape
    kh_bytes, kw_bytes = (4 * stride for stride in weight_strides[2:])
    origin = 0
    if geometry.flip_kernel:
        origin = (kernel_height - 1) * kh_bytes + (kernel_width - 1) * kw_bytes
        kh_bytes, kw_bytes = -kh_bytes, -kw_bytes
    columns, outer = kernel_width, 1
    if merges_columns(channels, geometry):
        columns, outer, left = 1, kernel_width, 0
    taps = tuple(
        (p * d1 - top, q * d2 - left, origin + p * kh_bytes + q * kw_bytes)
        for p, q in product(range(kernel_height), range(columns))
    )
    size = windows.output_size(*geometry.input_size)
    grid = Grid(
        batch, (height, width, channels), *size, windows.stride, taps, outer, channels // geometry.groups
    )
    return grid, kw_bytes


def grad_input_grids(
    g_shape: tuple[int, ...], weight_strides: tuple[int, ...], geometry: Any
) -> list[tuple[int, int, Grid]]:
    """The pixels of (2) as windows on g (N, H_out, W_out, C_out): those of row i and column j modulo the strides have
    the same taps. Returns i, j and their windows, without those that have no tap."""
    windows, grids = geometry.windows, []
    (s1, s2), (d1, d2), (top, _, left, _) = windows.stride, windows.dilation, windows.padding
    kernel_height, kernel_width = windows.kernel_size
    batch, *image = g_shape
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
            grid = Grid(
                batch, tuple(image), rows, columns, (1, 1), tuple(taps), 1, image[2] // geometry.groups
            )
            grids.append((i, j, grid))
    return grids


# ----------------------------------------------------------------------------------------------------- programs


@lru_cache(maxsize=512)
def forward_program(
    get_module: Any, x_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], has_bias: bool,
    geometry: Any, threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (1) with (17) for x, weight, bias and out, NHWC but for the weight with ``strides``."""
    module: KernelModule = get_module()
    grid, kw_bytes = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1])
    pixel = 4 * w_shape[0]
    places = [(grid, 0, (grid.rows * grid.columns * pixel, grid.columns * pixel, pixel))]
    return _conv_program(module, places, groups, channels, order, has_bias, threads)


@lru_cache(maxsize=512)
def grad_input_program(
    get_module: Any, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    threads: int,
) -> tuple[ConvProgram, bool]:  # fmt: skip
    """Program of (2) for g, weight, an address that is not used, and the result, NHWC but for the weight; and True if
    the result has pixels that it does not write, which have no gradient."""
    module: KernelModule = get_module()
    groups, channels = geometry.groups, w_shape[1]
    order = WeightOrder(4 * g_shape[3] // groups * strides[0], 4 * strides[1], 0, 4 * strides[0])
    (s1, s2), (height, width) = geometry.windows.stride, geometry.input_size
    pixel = 4 * channels * groups
    grids = grad_input_grids(g_shape, strides, geometry)
    places = [
        (grid, (i * width + j) * pixel, (height * width * pixel, s1 * width * pixel, s2 * pixel))
        for i, j, grid in grids
    ]
    is_partial = len(grids) < min(s1, height) * min(s2, width)
    return _conv_program(module, places, groups, channels, order, False, threads), is_partial


def _conv_program(
    module: KernelModule, places: Any, groups: int, channels: int, order: WeightOrder, has_bias: bool, threads: int
) -> ConvProgram:
    """Pack the weights of each grid, then compute the grids, of which each has an offset in ``out``, and strides."""
    lanes, panel_floats = module.lanes, PANEL_VECTORS[module.lanes] * module.lanes
    vectors, panels = -(-channels // lanes), -(-channels // panel_floats)
    packs, convolutions, constants, num_tasks = [], [], [], 1
    pack_tasks, pack_share = split_work(groups * vectors, threads)
    sizes = {"nonfinite": 4 * len(places) * pack_tasks}
    for n, (grid, offset, out_strides) in enumerate(places):
        taps, zeros = grid.constants()
        constants += [taps, zeros]
        rows = len(grid.taps) * grid.run + 1
        window_parts, window_share, channel_parts, panel_share = _split(grid.windows, groups * panels, threads)
        tasks, chunk = window_parts * channel_parts, grid.chunk(window_share)
        sizes |= {
            f"packed {n}": 4 * groups * vectors * lanes * rows,
            f"table {n}": 8 * tasks * (len(grid.taps) + 1) * chunk,
            f"sums {n}": 4 * tasks * chunk * panel_floats,
        }
        packs.append(
            module.call(
                "pack_panels", weight=BufferRef("weight"), bias=BufferRef("bias"), has_bias=has_bias,
                taps=taps.data_ptr(), num_taps=len(grid.taps), packed_weight=BufferRef(f"packed {n}"),
                nonfinite=BufferRef("nonfinite", 4 * n * pack_tasks), groups=groups, share=pack_share, channels=channels, outer=grid.outer, inner=grid.inner, **vars(order),
            )  # fmt: skip
        )
        taps_per_block = _even_block(len(grid.taps), max(1, BLOCK_K[lanes] // grid.run))
        call = module.call(
            "conv2d", x=BufferRef("x"), packed_weight=BufferRef(f"packed {n}"), out=BufferRef("out", offset),
            table=BufferRef(f"table {n}"), partial_sums=BufferRef(f"sums {n}"), window_share=window_share,
            window_parts=window_parts, panel_share=panel_share, groups=groups, channels=channels, run=grid.run,
            taps_per_block=taps_per_block, run_per_block=_even_block(grid.run, BLOCK_K[lanes]), chunk=chunk,
            **dict(zip(("out_image_bytes", "out_row_bytes", "out_column_bytes"), out_strides, strict=True)),
            **grid.arguments(taps, zeros),
        )  # fmt: skip
        convolutions.append(ParallelRegion(tasks, [call]))
        num_tasks = max(num_tasks, tasks)
    layout = WorkspaceLayout(**sizes)
    regions = [ParallelRegion(pack_tasks, packs), *convolutions]
    names = ("x", "weight", "bias", "out", *sizes)
    return ConvProgram(Program(module, min(threads, num_tasks), regions, names), layout, tuple(constants))


def _even_block(count: int, largest: int) -> int:
    """Return the size of blocks of at most ``largest`` that divide ``count`` most evenly."""
    return -(-count // -(-count // largest))


def _split(windows: int, panels: int, threads: int) -> tuple[int, int, int, int]:
    """Divide windows × panels among ``threads`` tasks: parts and share of both, windows in whole tiles."""
    best = None
    for channel_parts in range(1, min(threads, panels) + 1):
        panel_share = -(-panels // channel_parts)
        share = -(-windows // max(1, threads // channel_parts))
        share = max(TILE_ROWS, -(-share // TILE_ROWS) * TILE_ROWS)
        cost = share * panel_share
        if best is None or cost < best[0]:
            best = cost, max(1, -(-windows // share)), share, -(-panels // panel_share), panel_share
    assert best is not None
    return best[1:]


@lru_cache(maxsize=512)
def grad_weight_program(
    get_module: Any, x_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (3) for x, g and the result, NHWC but for the result with ``strides``."""
    module: KernelModule = get_module()
    lanes, panel_floats = module.lanes, PANEL_VECTORS[module.lanes] * module.lanes
    grid, kw_bytes = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1])
    units = groups * -(-channels // panel_floats) * len(grid.taps) * -(-grid.run // TILE_ROWS)
    tasks, share = split_work(units, threads)
    chunk = grid.chunk(max(1, grid.windows))
    taps, zeros = grid.constants()
    sizes = {
        "table": 8 * tasks * (len(grid.taps) + 1) * chunk,
        "sums": 4 * units * TILE_ROWS * panel_floats,
        "grads": 4 * tasks * chunk * panel_floats,
    }
    call = module.call(
        "conv2d_grad_weight", x=BufferRef("x"), grad_out=BufferRef("g"), grad_weight=BufferRef("grad_weight"),
        table=BufferRef("table"), partial_sums=BufferRef("sums"), packed_grads=BufferRef("grads"), units=units,
        share=share, groups=groups, channels=channels, outer=grid.outer, inner=grid.inner, chunk=chunk,
        **vars(order), **grid.arguments(taps, zeros),
    )  # fmt: skip
    layout = WorkspaceLayout(**sizes)
    program = Program(module, min(threads, tasks), [ParallelRegion(tasks, [call])], ("x", "g", "grad_weight", *sizes))
    return ConvProgram(program, layout, (taps, zeros))
