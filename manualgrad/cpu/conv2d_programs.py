"""Programs of the kernels for a general convolution.

A program is made once for each geometry, shape and number of threads. Weights are packed in its first region, since a
step of training changes them all. The formula of each is in ``ops/conv2d.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from manualgrad.cpu.conv2d_calls import GridCalls, ResultStrides, WeightOrder
from manualgrad.cpu.conv2d_grids import Grid, forward_grid, grad_input_grids
from manualgrad.cpu.conv2d_regions import (
    SUM_FLAGS,
    WEIGHT_FLAGS,
    PlacedGrid,
    Regions,
    conv_regions,
    grad_weight_regions,
    images_of,
)
from manualgrad.cpu.program import Program, WorkspaceLayout


@dataclass(frozen=True)
class ConvProgram:
    """A program for one call.

    Attributes:
        program: reads the images and weights or gradients, and writes the result.
        layout: of its workspace.
        calls: the calls in it, which keep the tensors whose addresses are in the program.
        result_shape: of the result, as PyTorch writes it.
        is_partial: True if it does not write all numbers of the result, and the others are 0.
        margin: columns of zeros left and right of the images, and floats behind them.
        contiguous: True for each tensor, inputs and then the result, that is contiguous rather than channels_last.
        flags: buffers of floats, of which one is NaN where a number is not finite that is multiplied with some of the
            zeros outside the image, and not with others: a weight, or a sum with a gradient.
    """

    program: Program
    layout: WorkspaceLayout
    calls: tuple[GridCalls, ...]
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
    grids = [PlacedGrid(grid, 0, ResultStrides(grid.rows * grid.columns * pixel, grid.columns * pixel, pixel))]
    result_shape = grid.batch, w_shape[0], grid.rows, grid.columns
    x = images_of("x", x_shape, contiguous[0] and not any(margin))
    out = images_of("out", result_shape, contiguous[1])
    regions = conv_regions(instructions, grids, groups, channels, order, has_bias, x, out, threads, has_relu)
    made = regions.program(instructions, threads, ("x", "weight", "bias", "out"))
    transposed = x.is_transposed, out.is_transposed
    flags = (WEIGHT_FLAGS,) if grid.has_border else ()
    return ConvProgram(*made, result_shape, margin=(*margin, 0), contiguous=transposed, flags=flags)


@lru_cache(maxsize=512)
def matrix_product_program(
    instructions: str, sizes: tuple[int, int, int], strides: tuple[int, int], has_bias: bool, threads: int
) -> ConvProgram:  # fmt: skip
    """Program of (6) with (17), x w + b, for ``sizes`` (rows of x, columns of x, columns of w) and strides of w.

    The rows of x are the pixels of one image, and w the weight of a kernel of one pixel."""
    rows, features, channels = sizes
    grid = Grid(1, (1, rows, features), 1, rows, (1, 1), ((0, 0, 0),), 1, features)
    order = WeightOrder(0, 4 * strides[1], 0, 4 * strides[0], 1)
    grids, result_shape = [PlacedGrid(grid, 0, ResultStrides(0, 0, 4 * channels))], (1, channels, 1, rows)
    x, out = images_of("x", (1, features, 1, rows), False), images_of("out", result_shape, False)
    regions = conv_regions(instructions, grids, 1, channels, order, has_bias, x, out, threads)
    made = regions.program(instructions, threads, ("x", "weight", "bias", "out"))
    return ConvProgram(*made, result_shape)


@lru_cache(maxsize=512)
def grad_input_program(
    instructions: str, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    contiguous: tuple[bool, bool], threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (2) for g, a weight with ``strides``, and the result."""
    regions, result_shape, is_partial, transposed = _grad_input_regions(
        instructions, g_shape, w_shape, strides, geometry, contiguous, threads
    )
    made = regions.program(instructions, threads, ("g", "weight", "grad_x"))
    return ConvProgram(*made, result_shape, is_partial, contiguous=transposed, flags=(WEIGHT_FLAGS,))


def _grad_input_regions(
    instructions: str, g_shape: tuple[int, ...], w_shape: tuple[int, ...], strides: tuple[int, ...], geometry: Any,
    contiguous: tuple[bool, bool], threads: int,
) -> tuple[Regions, tuple[int, int, int, int], bool, tuple[bool, bool]]:  # fmt: skip
    """Regions of (2), the shape of the result, True if they leave out some of it, and True for g and the result if
    they are contiguous."""
    groups, channels = geometry.groups, w_shape[1]
    positions = math.prod(w_shape[2:])
    order = WeightOrder(4 * g_shape[1] // groups * strides[0], 4 * strides[1], 0, 4 * strides[0], positions)
    (s1, s2), (height, width) = geometry.windows.stride, geometry.input_size
    pixel = 4 * channels * groups
    result_strides = ResultStrides(height * width * pixel, s1 * width * pixel, s2 * pixel)
    grids = [
        PlacedGrid(grid, (i * width + j) * pixel, result_strides)
        for i, j, grid in grad_input_grids(g_shape, strides, geometry)
    ]
    is_partial = len(grids) < min(s1, height) * min(s2, width)
    result_shape = g_shape[0], channels * groups, height, width
    g = images_of("g", g_shape, contiguous[0])
    # in the program of both gradients the copy of x is no longer read when this one is written
    grad_x = images_of("grad_x", result_shape, contiguous[1] and not is_partial, copy="x, channels last")
    regions = conv_regions(instructions, grids, groups, channels, order, False, g, grad_x, threads)
    return regions, result_shape, is_partial, (g.is_transposed, grad_x.is_transposed)


@lru_cache(maxsize=512)
def grad_weight_program(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    geometry: Any, contiguous: tuple[bool, bool], has_bias: bool, threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (3) for x, g, the result with ``strides``, and that of (17) for the gradient of a bias."""
    regions, margin, transposed, flags = _grad_weight_regions(
        instructions, x_shape, w_shape, strides, geometry, contiguous, has_bias, threads
    )
    made = regions.program(instructions, threads, ("x", "g", "grad_weight", "grad_bias"))
    return ConvProgram(*made, w_shape, margin=margin, contiguous=transposed, flags=flags)


@lru_cache(maxsize=512)
def backward_program(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    grad_strides: tuple[int, ...], geometry: Any, contiguous: tuple[bool, bool, bool], has_bias: bool, threads: int,
) -> ConvProgram:  # fmt: skip
    """Program of (2) and (3) for g, x, a weight with ``strides``, the gradient of x, that of w with its strides, and
    that of a bias.

    ``contiguous`` tells the formats of g, x and the gradient of x."""
    g_shape = x_shape[0], w_shape[0], *geometry.windows.output_size(*geometry.input_size)
    of_weight, margin, (reads_x, reads_g), flags = _grad_weight_regions(
        instructions, x_shape, w_shape, grad_strides, geometry, (contiguous[1], contiguous[0]), has_bias, threads
    )
    of_input, result_shape, is_partial, (_, writes) = _grad_input_regions(
        instructions, g_shape, w_shape, strides, geometry, (contiguous[0], contiguous[2]), threads
    )
    # both begin with a copy of g if it is contiguous: the second one is left out. Buffers of one name are shared
    sizes = {
        name: max(part.sizes.get(name, 0) for part in (of_weight, of_input))
        for name in of_weight.sizes | of_input.sizes
    }
    both = Regions(of_weight.regions + of_input.regions[reads_g:], sizes, of_weight.calls + of_input.calls)
    made = both.program(instructions, threads, ("g", "x", "weight", "grad_x", "grad_weight", "grad_bias"))
    return ConvProgram(*made, result_shape, is_partial, margin, (reads_g, reads_x, writes), (WEIGHT_FLAGS, *flags))


def _grad_weight_regions(
    instructions: str, x_shape: tuple[int, ...], w_shape: tuple[int, int, int, int], strides: tuple[int, ...],
    geometry: Any, contiguous: tuple[bool, bool], has_bias: bool, threads: int,
) -> tuple[Regions, tuple[int, int, int], tuple[bool, bool], tuple[str, ...]]:  # fmt: skip
    """Regions of (3), and of (17) if it ``has_bias``; the margin of x; for x and g True if contiguous; the flags."""
    grid, kw_bytes, margin = forward_grid(x_shape, strides, geometry)
    groups, channels = geometry.groups, w_shape[0] // geometry.groups
    order = WeightOrder(4 * channels * strides[0], 4 * strides[0], kw_bytes, 4 * strides[1], math.prod(w_shape[2:]))
    slack = grid.slack
    x = images_of("x", x_shape, contiguous[0] and not (slack or any(margin)))
    g = images_of("g", (grid.batch, w_shape[0], grid.rows, grid.columns), contiguous[1])
    regions = grad_weight_regions(instructions, grid, groups, channels, order, x, g, has_bias, threads)
    flags = (SUM_FLAGS,) if grid.can_leave_out_pixels else ()
    return regions, (*margin, slack), (x.is_transposed, g.is_transposed), flags
