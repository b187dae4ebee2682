"""Tables that the kernels for convolutions with few channels in a group read: which pixels meet which taps.

Along one dimension tap p of output j meets the pixel s·j + d·p − padding of the input, if there is one. Rows and
columns have tables of their own. With them the kernels need no instructions for padding, strides and dilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory

GROUP_SIZES = (1, 2, 4, 8, 16, 32)  # channels of a group, of the input and of the output
WEIGHT_VECTORS = 2  # vectors of channels in a block of packed weights
ROWS_PER_RUN = 4  # at most, so that the sources of a run of rows stay in the cache
ROWS_PER_RUN_OF_WHOLE_GROUPS = 6  # where a vector is one group: the pixels of a tile
RUN_FIELDS = ("first_target", "target_step", "count", "first_source", "source_step", "first_tap", "tap_count")
ROW_FIELDS = ("tap", "first", "stop", "offset")  # row i of g meets row s1·i + offset of x
SEGMENT_FIELDS = ("first_tap", "first", "stop", "offset")  # a range of columns of g, and neighbouring taps
MAX_SEGMENT_TAPS = {1: 4, 2: 4, 4: 3, 8: 3, 16: 3, 32: 3}  # by channels of a group: the sums of a tile are registers


@dataclass(frozen=True)
class Runs:
    """Runs of targets, equally spaced, that have the same taps.

    ``table`` is (runs, 7) int64, the ``RUN_FIELDS`` of each. From one tap of a target to the next there are
    ``tap_step`` entries of the kernel and ``source_step`` source pixels."""

    table: Tensor
    tap_step: int
    source_step: int


def forward_runs(
    size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int, *, flip: bool,
    max_count: int | None = None,
) -> Runs:  # fmt: skip
    """Runs of up to ``max_count`` outputs, whose sources are pixels of the input."""
    sources = [[(p, stride * j + dilation * p - padding) for p in range(kernel)] for j in range(out_size)]
    return _runs(sources, size, 1, dilation, kernel if flip else None, max_count)


def grad_input_runs(
    size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int, *, flip: bool,
    max_count: int | None = None,
) -> Runs:  # fmt: skip
    """Runs of up to ``max_count`` pixels of the input, whose sources are outputs."""
    distances = [[(p, t + padding - dilation * p) for p in range(kernel)] for t in range(size)]
    sources = [[(p, d // stride) for p, d in of_pixel if d % stride == 0] for of_pixel in distances]
    tap_step = stride // gcd(stride, dilation)
    return _runs(sources, out_size, tap_step, -dilation * tap_step // stride, kernel if flip else None, max_count)


def _runs(
    sources: list[list[tuple[int, int]]], size: int, tap_step: int, source_step: int, flipped_kernel: int | None,
    max_count: int | None,
) -> Runs:  # fmt: skip
    """``sources`` has taps and source pixels of each target; those outside of an image of ``size`` do not count."""
    by_taps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for target, of_target in enumerate(sources):
        inside = [entry for entry in of_target if 0 <= entry[1] < size]
        first_tap, first_source = inside[0] if inside else (0, 0)
        by_taps.setdefault((first_tap, len(inside)), []).append((target, first_source))
    runs = []
    for (first_tap, tap_count), targets in by_taps.items():
        tap = first_tap if flipped_kernel is None else flipped_kernel - 1 - first_tap
        for run in _equally_spaced(targets, max_count or len(targets)):
            steps = [run[1][n] - run[0][n] if len(run) > 1 else 1 for n in range(2)]
            runs.append((run[0][0], steps[0], len(run), run[0][1], steps[1], tap, tap_count))
    return Runs(_table(sorted(runs)), tap_step if flipped_kernel is None else -tap_step, source_step)


def _equally_spaced(targets: list[tuple[int, int]], max_length: int) -> list[list[tuple[int, int]]]:
    runs: list[list[tuple[int, int]]] = []
    for target in targets:
        run = runs[-1] if runs else []
        if 0 < len(run) < max_length and (len(run) == 1 or target[0] - run[-1][0] == run[1][0] - run[0][0]):
            run.append(target)
        else:
            runs.append([target])
    return runs


@dataclass(frozen=True)
class WeightTables:
    """Tables for the gradient of the weight.

    ``row_taps`` is (kH, 4), the ``ROW_FIELDS`` of each row of the kernel. ``segments`` is (segments, 4), the
    ``SEGMENT_FIELDS`` of each; ``segments_of`` has the number of those with 1, 2, 3 and 4 taps, in this order."""

    row_taps: Tensor
    segments: Tensor
    segments_of: tuple[int, ...]


def weight_tables(geometry: Any, group_size: int) -> WeightTables:
    """Tables for a ``Conv2dGeometry`` and groups of ``group_size`` channels."""
    output_size = geometry.windows.output_size(*geometry.input_size)
    rows, columns = (_taps(geometry, n, geometry.input_size[n], output_size[n]) for n in range(2))
    max_taps, segments = MAX_SEGMENT_TAPS[group_size], []
    num_tiles = -(-len(columns) // max_taps)
    for n in range(num_tiles):
        tile = columns[len(columns) * n // num_tiles : len(columns) * (n + 1) // num_tiles]
        segments += _segments(tile)
    segments.sort()
    counts = tuple(sum(num_taps == count for num_taps, _ in segments) for count in (1, 2, 3, 4))
    return WeightTables(_table(rows), _table([fields for _, fields in segments]), counts)


def _segments(taps: list[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Number of taps and ``SEGMENT_FIELDS``: the columns that all ``taps`` meet, and for each tap the others."""
    first, stop = max(tap[1] for tap in taps), min(tap[2] for tap in taps)
    if first >= stop:
        return [(1, tap) for tap in taps if tap[1] < tap[2]]
    number, _, _, offset = taps[0]
    segments: list[tuple[int, tuple[int, ...]]] = [(len(taps), (number, first, stop, offset))]
    for number, tap_first, tap_stop, offset in taps:
        segments += [(1, (number, tap_first, first, offset))] if tap_first < first else []
        segments += [(1, (number, stop, tap_stop, offset))] if stop < tap_stop else []
    return segments


def _taps(geometry: Any, dim: int, size: int, out_size: int) -> list[tuple[int, ...]]:
    """``ROW_FIELDS`` of each tap along a dimension: the outputs j for which s·j + offset is a pixel of the input."""
    windows = geometry.windows
    kernel, stride = windows.kernel_size[dim], windows.stride[dim]
    taps: list[tuple[int, ...]] = []
    for p in range(kernel):
        offset = windows.dilation[dim] * p - windows.padding[2 * dim]
        first, stop = max(0, -(offset // stride)), min(out_size, -((offset - size) // stride))
        taps.append((kernel - 1 - p if geometry.flip_kernel else p, first, stop, offset))
    return taps


def _table(records: Sequence[Sequence[int]]) -> Tensor:
    words = torch.tensor(records, dtype=torch.int64, device="cpu")
    return memory.new(*words.shape, dtype=torch.int64).copy_(words)
