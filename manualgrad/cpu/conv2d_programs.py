"""Programs of the kernels for a general convolution: sizes, division of work, and the arguments that follow.

A program is made once for each geometry, shape and number of threads. Weights are packed in its first region, since a
step of training changes them all. The formula of each is in ``ops/conv2d.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from manualgrad.cpu import instruction_set
from manualgrad.cpu.conv2d_calls import PANEL_VECTORS, GridCalls, WeightOrder
from manualgrad.cpu.conv2d_grids import TILE_ROWS, Grid, forward_grid, grad_input_grids
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.image_formats import can_transpose, to_channels_last, to_contiguous
from manualgrad.cpu.kernel_groups import CONV2D
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

WEIGHT_FLAGS, SUM_FLAGS = "weights not finite", "sums not finite"  # of ``kernels/pack_panels.py``
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
        flags: buffers of floats, of which one is NaN where a number is not finite that is multiplied with some of the
            zeros outside the image, and not with others: a weight, or a sum with a gradient.
    """

    program: Program
    layout: WorkspaceLayout
    constants: tuple[Tensor, ...]
    result_shape: tuple[int, int, int, int]
    is_partial: bool = False
    margin: tuple[int, int, int] = (0, 0, 0)
    contiguous: tuple[bool, ...] = (False, False)
    flags: tuple[str, ...] = ()

    @cached_property
    def has_margin(self) -> bool:
        return any(self.margin)

    def run(self, *addresses: int) -> bool:
        """Run the program on tensors at ``addresses``, in the order of its names; return True if its result is right.

        It is wrong only if a flag is NaN."""
        return not any(map(math.isnan, self.program.run_in_workspace(self.layout, addresses, self.flags)))


@lru_cache(maxsize=512)
def forward_program(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], has_bias: bool,
    geometry: Any, contiguous: tuple[bool, bool], threads: int, has_relu: bool = False,
) -> ConvProgram:  # fmt: skip
    """Program of (1) with (17) for x, a weight with ``strides``, the bias and the result; R of it if ``has_relu``."""
    grid, kw_bytes, margin = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1], math.prod(w_shape[2:]))
    pixel = 4 * w_shape[0]
    places = [(grid, 0, (grid.rows * grid.columns * pixel, grid.columns * pixel, pixel))]
    result_shape = grid.batch, w_shape[0], grid.rows, grid.columns
    shapes = _transposed_shapes((x_shape, result_shape), (contiguous[0] and not any(margin), contiguous[1]))
    names = ("x", "x, channels last"), ("out", "out, channels last")
    parts = _conv_regions(instructions, places, groups, channels, order, has_bias, shapes, names, threads, has_relu)
    made = parts.program(instructions, threads, ("x", "weight", "bias", "out"))
    return ConvProgram(
        *made, result_shape, False, (*margin, 0), _are_transposed(shapes), (WEIGHT_FLAGS,) if grid.has_border else ()
    )


@lru_cache(maxsize=512)
def matrix_product_program(
    instructions: str, sizes: tuple[int, int, int], strides: tuple[int, int], has_bias: bool, threads: int
) -> ConvProgram:  # fmt: skip
    """Program of (6) with (17), x w + b, for ``sizes`` (rows of x, columns of x, columns of w) and strides of w.

    The rows of x are the pixels of one image, and w the weight of a kernel of one pixel."""
    rows, features, channels = sizes
    grid = Grid(1, (1, rows, features), 1, rows, (1, 1), ((0, 0, 0),), 1, features)
    order = WeightOrder(0, 4 * strides[1], 0, 4 * strides[0], 1)
    places, names = [(grid, 0, (0, 0, 4 * channels))], (("x", "x"), ("out", "out"))
    parts = _conv_regions(instructions, places, 1, channels, order, has_bias, (None, None), names, threads)
    made = parts.program(instructions, threads, ("x", "weight", "bias", "out"))
    return ConvProgram(*made, (1, channels, 1, rows))


@lru_cache(maxsize=512)
def grad_input_program(
    instructions: str, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    contiguous: tuple[bool, bool], threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (2) for g, a weight with ``strides``, and the result."""
    parts, result_shape, is_partial, transposed = _grad_input_regions(
        instructions, g_shape, w_shape, strides, geometry, contiguous, threads
    )
    made = parts.program(instructions, threads, ("g", "weight", "grad_x"))
    return ConvProgram(*made, result_shape, is_partial, contiguous=transposed, flags=(WEIGHT_FLAGS,))


def _grad_input_regions(
    instructions: str, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    contiguous: tuple[bool, bool], threads: int,
) -> tuple[_Regions, tuple[int, int, int, int], bool, tuple[bool, bool]]:  # fmt: skip
    """Regions of (2), the shape of the result, True if they leave out some of it, and which images are contiguous."""
    groups, channels = geometry.groups, w_shape[1]
    positions = math.prod(w_shape[2:])
    order = WeightOrder(4 * g_shape[1] // groups * strides[0], 4 * strides[1], 0, 4 * strides[0], positions)
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
    names = ("g", "g, channels last"), ("grad_x", "x, channels last")
    parts = _conv_regions(instructions, places, groups, channels, order, False, shapes, names, threads)
    return parts, result_shape, is_partial, _are_transposed(shapes)


@dataclass(frozen=True)
class _Regions:
    """Regions, the sizes of the buffers in their workspace, and the tensors whose addresses are in them."""

    regions: list[ParallelRegion]
    sizes: dict[str, int]
    constants: tuple[Tensor, ...]

    def program(
        self, instructions: str, threads: int, names: tuple[str, ...]
    ) -> tuple[Program, WorkspaceLayout, tuple[Tensor, ...]]:
        module, layout = instruction_set.load_group(instructions, CONV2D), WorkspaceLayout(**self.sizes)
        num_threads = min(threads, max(region.num_tasks for region in self.regions))
        return Program(module, num_threads, self.regions, names, layout), layout, self.constants


def _conv_regions(
    instructions: str, places: Any, groups: int, channels: int, order: WeightOrder, has_bias: bool, shapes: Any,
    names: Any, threads: int, has_relu: bool = False,
) -> _Regions:  # fmt: skip
    """Pack the weights of each grid, then compute the grids, of which each has an offset in ``out``, and strides.

    ``names`` are those of x and ``out``, each with that of its copy; their ``shapes`` are given for those that are
    copied."""
    module = instruction_set.load_group(instructions, CONV2D)
    threads = _num_threads(
        threads, sum(grid.windows * len(grid.taps) * grid.run for grid, _, _ in places) * groups * channels
    )
    packs, convolutions, constants = [], [], list[Tensor]()
    pack_tasks, pack_share = split_work(
        groups * -(-channels // (PANEL_VECTORS[module.lanes] * module.lanes)), threads
    )
    sizes = {WEIGHT_FLAGS: 4 * len(places) * pack_tasks}
    x, out = (BufferRef(copy if shape else name) for (name, copy), shape in zip(names, shapes, strict=True))
    for n, (grid, offset, out_strides) in enumerate(places):
        calls = GridCalls(module.lanes, grid, order, groups, channels)
        constants += (*calls.constants, calls.places)
        window_parts, window_share, channel_parts, panel_share = _split(grid.windows, calls.panels, threads)
        tasks, chunk = window_parts * channel_parts, grid.chunk(module.lanes, window_share)
        sizes |= {
            f"packed {n}": calls.packed_bytes,
            f"scratch {n}": pack_tasks * calls.scratch_bytes,
            f"table {n}": tasks * calls.table_bytes(chunk),
            f"sums {n}": tasks * calls.panel_bytes(chunk),
        }
        packed, table, sums, scratch = (BufferRef(f"{name} {n}") for name in ("packed", "table", "sums", "scratch"))
        pack = calls.pack(
            module.call, pack_share, weight=BufferRef("weight"), bias=BufferRef("bias") if has_bias else None,
            packed=packed, nonfinite=BufferRef(WEIGHT_FLAGS, 4 * n * pack_tasks), scratch=scratch,
        )  # fmt: skip
        packs.append(pack)
        call = calls.conv2d(
            module.call, (window_share, window_parts, panel_share), chunk, out_strides, x=x, packed=packed,
            out=out + offset, table=table, sums=sums, has_relu=has_relu,
        )  # fmt: skip
        convolutions.append(ParallelRegion(tasks, [call]))
    sizes |= {ref.name: 4 * math.prod(shape) for ref, shape in zip((x, out), shapes, strict=True) if shape}
    regions = [ParallelRegion(pack_tasks, packs), *convolutions]
    if shapes[0]:
        regions.insert(0, to_channels_last(module, BufferRef(names[0][0]), x, shapes[0], threads))
    if shapes[1]:
        regions.append(to_contiguous(module, out, BufferRef(names[1][0]), shapes[1], threads))
    return _Regions(regions, sizes, tuple(constants))


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
    parts, margin, transposed, flags = _grad_weight_regions(
        instructions, x_shape, w_shape, strides, geometry, contiguous, threads
    )
    made = parts.program(instructions, threads, ("x", "g", "grad_weight"))
    return ConvProgram(*made, w_shape, margin=margin, contiguous=transposed, flags=flags)


@lru_cache(maxsize=512)
def backward_program(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    grad_strides: tuple[int, ...], geometry: Any, contiguous: tuple[bool, bool, bool], threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (2) and (3) for g, x, a weight with ``strides``, the gradient of x, and that of w with its strides.

    ``contiguous`` tells the formats of g, x and the gradient of x."""
    g_shape = x_shape[0], w_shape[0], *geometry.windows.output_size(*geometry.input_size)
    of_weight, margin, (reads_x, reads_g), flags = _grad_weight_regions(
        instructions, x_shape, w_shape, grad_strides, geometry, (contiguous[1], contiguous[0]), threads
    )
    of_input, result_shape, is_partial, (_, writes) = _grad_input_regions(
        instructions, g_shape, w_shape, strides, geometry, (contiguous[0], contiguous[2]), threads
    )
    # both begin with a copy of g if it is contiguous: the second one is left out. They share their buffers: those of
    # the weight's gradient are named as those of the other one
    sizes = {
        name: max(part.sizes.get(name, 0) for part in (of_weight, of_input))
        for name in of_weight.sizes | of_input.sizes
    }
    regions, constants = of_weight.regions + of_input.regions[reads_g:], of_weight.constants + of_input.constants
    parts = _Regions(regions, sizes, constants)
    made = parts.program(instructions, threads, ("g", "x", "weight", "grad_x", "grad_weight"))
    return ConvProgram(*made, result_shape, is_partial, margin, (reads_g, reads_x, writes), (WEIGHT_FLAGS, *flags))


def _grad_weight_regions(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    geometry: Any, contiguous: tuple[bool, bool], threads: int,
) -> tuple[_Regions, tuple[int, int, int], tuple[bool, bool], tuple[str, ...]]:  # fmt: skip
    """Regions of (3), the margin of x, which of x and g are contiguous, and the flags."""
    module = instruction_set.load_group(instructions, CONV2D)
    grid, kw_bytes, margin = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1], math.prod(w_shape[2:]))
    calls = GridCalls(module.lanes, grid, order, groups, channels)
    threads = _num_threads(threads, grid.windows * len(grid.taps) * grid.run * w_shape[0])
    tasks, share = split_work(calls.units, threads)
    unpack_tasks, unpack_share = split_work(calls.panels, threads)
    chunk = grid.grad_weight_chunk(module.lanes)
    sizes = {
        SUM_FLAGS: 4 * unpack_tasks,
        "scratch 0": unpack_tasks * calls.scratch_bytes,
        "table 0": tasks * calls.lists_bytes(chunk),
        "packed 0": calls.units * calls.unit_bytes,
        "sums 0": tasks * calls.panel_bytes(chunk),
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
        module.call, share, chunk, x=sources[0], grad_out=sources[1], lists=BufferRef("table 0"),
        sums=BufferRef("packed 0"), packed_grads=BufferRef("sums 0"), lists_zeros=not grid.can_leave_out_pixels,
    )  # fmt: skip
    unpack = calls.unpack(
        module.call, unpack_share, sums=BufferRef("packed 0"), grad_weight=BufferRef("grad_weight"),
        scratch=BufferRef("scratch 0"), nonfinite=BufferRef(SUM_FLAGS),
    )  # fmt: skip
    regions += [ParallelRegion(tasks, [call]), ParallelRegion(unpack_tasks, [unpack])]
    flags = (SUM_FLAGS,) if grid.can_leave_out_pixels else ()
    return _Regions(regions, sizes, calls.constants), (*margin, slack), _are_transposed(shapes), flags
