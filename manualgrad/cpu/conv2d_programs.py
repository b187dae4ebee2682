"""Programs of the kernels for a general convolution: sizes, division of work, and the arguments that follow.

A program is made once for each geometry, shape and number of threads. Weights are packed in its first region, since a
step of training changes them all. The formula of each is in ``ops/conv2d.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from manualgrad.cpu import instruction_set
from manualgrad.cpu.conv2d_calls import GridCalls, WeightOrder
from manualgrad.cpu.conv2d_grids import TILE_ROWS, forward_grid, grad_input_grids
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.image_formats import can_transpose, to_channels_last, to_contiguous
from manualgrad.cpu.jit import CONV2D
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

MULTIPLICATIONS_PER_THREAD = 1 << 20  # fewer are done before another thread wakes up


@dataclass(frozen=True)
class ConvProgram:
    """A program for one call.

    Attributes:
        program: reads the images and weights or gradients, and writes the result.
        layout: of its workspace.
        constants: tensors whose addresses are in the program.
        result_shape: of the result, as PyTorch writes it.
        is_partial: True if it does not write all numbers of the result, and the others are 0.
        margin: columns of zeros left and right of the images, and floats behind them.
        contiguous: True for each tensor, inputs and then the result, that is contiguous rather than channels_last.
    """

    program: Program
    layout: WorkspaceLayout
    constants: tuple[Tensor, ...]
    result_shape: tuple[int, int, int, int]
    is_partial: bool = False
    margin: tuple[int, int, int] = (0, 0, 0)
    contiguous: tuple[bool, bool] = (False, False)

    def run(self, *addresses: int) -> None:
        """Run the program on tensors at ``addresses``, in the order of its names."""
        workspace = self.layout.take()
        self.program.run((*addresses, workspace.data_ptr()))
        self.layout.give_back(workspace)

    def run_and_check(self, *addresses: int) -> bool:
        """Run the program, and return True if all weights that were packed are finite."""
        workspace = self.layout.take()
        self.program.run((*addresses, workspace.data_ptr()))
        nonfinite = self.layout.read_floats(workspace, "nonfinite")
        self.layout.give_back(workspace)
        return not any(map(math.isnan, nonfinite))


@lru_cache(maxsize=512)
def forward_program(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], has_bias: bool,
    geometry: Any, contiguous: tuple[bool, bool], threads: int, has_relu: bool = False,
) -> ConvProgram:  # fmt: skip
    """Program of (1) with (17) for x, a weight with ``strides``, the bias and the result; R of it if ``has_relu``."""
    grid, kw_bytes, margin = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1])
    pixel = 4 * w_shape[0]
    places = [(grid, 0, (grid.rows * grid.columns * pixel, grid.columns * pixel, pixel))]
    result_shape = grid.batch, w_shape[0], grid.rows, grid.columns
    shapes = _transposed_shapes((x_shape, result_shape), (contiguous[0] and not any(margin), contiguous[1]))
    parts = _conv_program(instructions, places, groups, channels, order, has_bias, shapes, threads, has_relu)
    return ConvProgram(*parts, result_shape, False, (*margin, 0), _are_transposed(shapes))


@lru_cache(maxsize=512)
def grad_input_program(
    instructions: str, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    contiguous: tuple[bool, bool], threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (2) for g, a weight with ``strides``, an address that is not used, and the result."""
    groups, channels = geometry.groups, w_shape[1]
    order = WeightOrder(4 * g_shape[1] // groups * strides[0], 4 * strides[1], 0, 4 * strides[0])
    (s1, s2), (height, width) = geometry.windows.stride, geometry.input_size
    pixel = 4 * channels * groups
    grids = grad_input_grids(g_shape, strides, geometry)
    places = [
        (grid, (i * width + j) * pixel, (height * width * pixel, s1 * width * pixel, s2 * pixel))
        for i, j, grid in grids
    ]
    is_partial, result_shape = (
        len(grids) < min(s1, height) * min(s2, width),
        (g_shape[0], channels * groups, height, width),
    )
    shapes = _transposed_shapes((g_shape, result_shape), (contiguous[0], contiguous[1] and not is_partial))
    parts = _conv_program(instructions, places, groups, channels, order, False, shapes, threads)
    return ConvProgram(*parts, result_shape, is_partial, contiguous=_are_transposed(shapes))


def _conv_program(
    instructions: str, places: Any, groups: int, channels: int, order: WeightOrder, has_bias: bool, shapes: Any,
    threads: int, has_relu: bool = False,
) -> tuple[Program, WorkspaceLayout, tuple[Tensor, ...]]:  # fmt: skip
    """Pack the weights of each grid, then compute the grids, of which each has an offset in ``out``, and strides.

    ``shapes`` of x and ``out`` are given for those of them that are transposed."""
    module = instruction_set.load_group(instructions, CONV2D)
    threads = _num_threads(
        threads, sum(grid.windows * len(grid.taps) * grid.run for grid, _, _ in places) * groups * channels
    )
    packs, convolutions, constants = [], [], list[Tensor]()
    pack_tasks, pack_share = split_work(groups * -(-channels // module.lanes), threads)
    sizes = {"nonfinite": 4 * len(places) * pack_tasks}
    x, out = (
        BufferRef(f"{name}, channels last" if shape else name)
        for name, shape in zip(("x", "out"), shapes, strict=True)
    )
    for n, (grid, offset, out_strides) in enumerate(places):
        calls = GridCalls(module.lanes, grid, order, groups, channels)
        constants += calls.constants
        window_parts, window_share, channel_parts, panel_share = _split(grid.windows, calls.panels, threads)
        tasks, chunk = window_parts * channel_parts, grid.chunk(window_share)
        sizes |= {
            f"packed {n}": calls.packed_bytes,
            f"table {n}": tasks * calls.table_bytes(chunk),
            f"sums {n}": tasks * calls.panel_bytes(chunk),
        }
        packed, table, sums = (BufferRef(f"{name} {n}") for name in ("packed", "table", "sums"))
        pack = calls.pack(
            module.call, pack_share, weight=BufferRef("weight"), bias=BufferRef("bias") if has_bias else None,
            packed=packed, nonfinite=BufferRef("nonfinite", 4 * n * pack_tasks),
        )  # fmt: skip
        packs.append(pack)
        call = calls.conv2d(
            module.call, (window_share, window_parts, panel_share), chunk, out_strides, x=x, packed=packed,
            out=out + offset, table=table, sums=sums, has_relu=has_relu,
        )  # fmt: skip
        convolutions.append(ParallelRegion(tasks, [call]))
    sizes |= {ref.name: 4 * math.prod(shape) for ref, shape in zip((x, out), shapes, strict=True) if shape}
    layout = WorkspaceLayout(**sizes)
    regions = [ParallelRegion(pack_tasks, packs), *convolutions]
    if shapes[0]:
        regions.insert(0, to_channels_last(module, BufferRef("x"), x, shapes[0], threads))
    if shapes[1]:
        regions.append(to_contiguous(module, out, BufferRef("out"), shapes[1], threads))
    num_threads = min(threads, max(region.num_tasks for region in regions))
    program = Program(module, num_threads, regions, ("x", "weight", "bias", "out"), layout)
    return program, layout, tuple(constants)


def _transposed_shapes(shapes: Any, contiguous: tuple[bool, bool]) -> tuple[Any, Any]:
    """Return the shapes of two tensors, None for one that the program need not, or cannot, transpose."""
    first, second = (
        shape if is_contiguous and can_transpose(shape) else None
        for shape, is_contiguous in zip(shapes, contiguous, strict=True)
    )
    return first, second


def _are_transposed(shapes: tuple[Any, Any]) -> tuple[bool, bool]:
    return shapes[0] is not None, shapes[1] is not None


def _num_threads(threads: int, multiplications: int) -> int:
    return min(threads, 1 + multiplications // MULTIPLICATIONS_PER_THREAD)


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
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    geometry: Any, contiguous: tuple[bool, bool], threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (3) for x, g and the result with ``strides``."""
    module = instruction_set.load_group(instructions, CONV2D)
    grid, kw_bytes, margin = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1])
    calls = GridCalls(module.lanes, grid, order, groups, channels)
    threads = _num_threads(threads, grid.windows * len(grid.taps) * grid.run * w_shape[0])
    tasks, share = split_work(calls.units, threads)
    chunk = grid.chunk(max(1, grid.windows))
    sizes = {
        "table": tasks * calls.table_bytes(chunk),
        "sums": calls.units * calls.unit_bytes,
        "grads": tasks * calls.panel_bytes(chunk),
    }
    slack, regions = calls.slack, []
    g_shape = grid.batch, w_shape[0], grid.rows, grid.columns
    shapes = _transposed_shapes((x_shape, g_shape), (contiguous[0] and not (slack or any(margin)), contiguous[1]))
    sources = []
    for name, shape in zip(("x", "g"), shapes, strict=True):
        sources.append(BufferRef(f"{name}, channels last" if shape else name))
        if shape:
            sizes[sources[-1].name] = 4 * math.prod(shape)
            regions.append(to_channels_last(module, BufferRef(name), sources[-1], shape, threads))
    call = calls.grad_weight(
        module.call, share, chunk, x=sources[0], grad_out=sources[1], grad_weight=BufferRef("grad_weight"),
        table=BufferRef("table"), sums=BufferRef("sums"), packed_grads=BufferRef("grads"),
    )  # fmt: skip
    layout = WorkspaceLayout(**sizes)
    regions.append(ParallelRegion(tasks, [call]))
    num_threads = min(threads, max(region.num_tasks for region in regions))
    program = Program(module, num_threads, regions, ("x", "g", "grad_weight"), layout)
    return ConvProgram(
        program, layout, calls.constants, w_shape, margin=(*margin, slack), contiguous=_are_transposed(shapes)
    )
