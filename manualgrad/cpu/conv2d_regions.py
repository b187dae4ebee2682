"""Parallel regions of a general convolution: its work divided among tasks, and the buffers that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from manualgrad.cpu import instruction_set
from manualgrad.cpu.conv2d_calls import GridCalls, ResultStrides, WeightOrder, WindowSplit
from manualgrad.cpu.conv2d_grids import TILE_ROWS, Grid
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.image_formats import can_transpose, to_channels_last, to_contiguous
from manualgrad.cpu.kernel_groups import CONV2D
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion

WEIGHT_FLAGS, SUM_FLAGS = "weights not finite", "sums not finite"  # of ``kernels/pack_panels.py``
MULTIPLICATIONS_PER_THREAD = 1 << 20  # fewer are done before another thread wakes up


class Images(NamedTuple):
    """Images that kernels read or write, channels last.

    Attributes:
        name: name of the tensor.
        shape: (N, C, H, W).
        is_transposed: True if the tensor is contiguous, and kernels read or write a copy.
        copy: name of the buffer of the copy.
    """

    name: str
    shape: tuple[int, ...]
    is_transposed: bool
    copy: str

    @property
    def channels_last(self) -> BufferRef:
        return BufferRef(self.copy if self.is_transposed else self.name)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the copy, if there is one."""
        return {self.copy: 4 * math.prod(self.shape)} if self.is_transposed else {}


def images_of(name: str, shape: tuple[int, ...], is_contiguous: bool, copy: str = "") -> Images:
    """Return images that are transposed if they are contiguous and a kernel can do it."""
    return Images(name, shape, is_contiguous and can_transpose(shape), copy or f"{name}, channels last")


@dataclass(frozen=True)
class Regions:
    """Regions, the sizes of the buffers in their workspace, and the calls whose tensors' addresses are in them."""

    regions: list[ParallelRegion]
    sizes: dict[str, int]
    calls: tuple[GridCalls, ...]

    def program(
        self, instructions: str, threads: int, names: tuple[str, ...]
    ) -> tuple[Program, WorkspaceLayout, tuple[GridCalls, ...]]:
        module, layout = instruction_set.load_group(instructions, CONV2D), WorkspaceLayout(**self.sizes)
        num_threads = min(threads, max(region.num_tasks for region in self.regions))
        return Program(module, num_threads, self.regions, names, layout), layout, self.calls


class PlacedGrid(NamedTuple):
    """A grid whose windows' results begin at a byte ``offset`` of the result."""

    grid: Grid
    offset: int
    strides: ResultStrides


def conv_regions(
    instructions: str, grids: Sequence[PlacedGrid], groups: int, channels: int, order: WeightOrder, has_bias: bool,
    x: Images, out: Images, threads: int, has_relu: bool = False,
) -> Regions:  # fmt: skip
    """Pack the weights of each grid, then compute the grids one after the other."""
    module = instruction_set.load_group(instructions, CONV2D)
    terms = sum(grid.windows * len(grid.taps) * grid.run for grid, _, _ in grids)
    threads = limit_threads(threads, terms * groups * channels)
    all_calls = tuple(GridCalls(module.lanes, grid, order, groups, channels) for grid, _, _ in grids)
    panels = all_calls[0].panels if all_calls else 0  # there is no grid if no window has a pixel of the image
    pack_tasks, pack_share = split_work(panels, threads)
    sizes = {WEIGHT_FLAGS: 4 * len(grids) * pack_tasks} | x.sizes | out.sizes
    packs, convolutions = [], []
    for n, (calls, (grid, offset, strides)) in enumerate(zip(all_calls, grids, strict=True)):
        split = split_windows(grid.windows, panels, threads)
        tasks, chunk = split.num_tasks(panels), grid.chunk(module.lanes, split.window_share)
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
            module.call, split, chunk, strides, x=x.channels_last, packed=packed, out=out.channels_last + offset,
            table=table, sums=sums, has_relu=has_relu,
        )  # fmt: skip
        convolutions.append(ParallelRegion(tasks, [call]))
    regions = [ParallelRegion(pack_tasks, packs), *convolutions]
    if x.is_transposed:
        regions.insert(0, to_channels_last(module, BufferRef(x.name), x.channels_last, x.shape, threads))
    if out.is_transposed:
        regions.append(to_contiguous(module, out.channels_last, BufferRef(out.name), out.shape, threads))
    return Regions(regions, sizes, all_calls)


def grad_weight_regions(
    instructions: str, grid: Grid, groups: int, channels: int, order: WeightOrder, x: Images, g: Images,
    has_bias: bool, threads: int,
) -> Regions:  # fmt: skip
    """Compute the weight gradient in the order of the kernels, and that of a bias, then store it as the weight is."""
    module = instruction_set.load_group(instructions, CONV2D)
    calls = GridCalls(module.lanes, grid, order, groups, channels)
    threads = limit_threads(threads, grid.windows * len(grid.taps) * grid.run * groups * channels)
    tasks, share = split_work(calls.units, threads)
    unpack_tasks, unpack_share = split_work(calls.panels, threads)
    chunk = grid.grad_weight_chunk(module.lanes)
    # named as those of :func:`conv_regions`, with which they share memory if one program has both
    sizes = {
        SUM_FLAGS: 4 * unpack_tasks,
        "scratch 0": unpack_tasks * calls.scratch_bytes,
        "table 0": tasks * calls.lists_bytes(chunk),
        "packed 0": calls.units * calls.unit_bytes,
        "sums 0": tasks * calls.panel_bytes(chunk),
    }
    copies = [
        to_channels_last(module, BufferRef(images.name), images.channels_last, images.shape, threads)
        for images in (x, g)
        if images.is_transposed
    ]
    call = calls.grad_weight(
        module.call, share, chunk, x=x.channels_last, grad_out=g.channels_last, lists=BufferRef("table 0"),
        sums=BufferRef("packed 0"), packed_grads=BufferRef("sums 0"), lists_zeros=not grid.can_leave_out_pixels,
        grad_bias=BufferRef("grad_bias") if has_bias else None,
    )  # fmt: skip
    unpack = calls.unpack(
        module.call, unpack_share, sums=BufferRef("packed 0"), grad_weight=BufferRef("grad_weight"),
        scratch=BufferRef("scratch 0"), nonfinite=BufferRef(SUM_FLAGS),
    )  # fmt: skip
    regions = [*copies, ParallelRegion(tasks, [call]), ParallelRegion(unpack_tasks, [unpack])]
    return Regions(regions, sizes | x.sizes | g.sizes, (calls,))


def limit_threads(threads: int, multiplications: int) -> int:
    """Return the number of threads, at most ``threads``, that is worth their start."""
    return min(threads, 1 + multiplications // MULTIPLICATIONS_PER_THREAD)


def split_windows(windows: int, panels: int, threads: int) -> WindowSplit:
    """Divide windows × panels among at most ``threads`` tasks, windows in whole tiles; the largest task is small."""
    splits = []
    for channel_parts in range(1, min(threads, panels) + 1):
        share = -(-windows // max(1, threads // channel_parts))
        share = max(TILE_ROWS, -(-share // TILE_ROWS) * TILE_ROWS)
        splits.append(WindowSplit(share, max(1, -(-windows // share)), -(-panels // channel_parts)))
    return min(splits, key=lambda split: split.window_share * split.panel_share)
