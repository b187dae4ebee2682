"""Runs of target pixels that have the same taps: the tables that ``kernels/grouped_conv.py`` reads.

Along one dimension, tap p of target t reads source pixel s·t + d·p − padding in forward. For the gradient of the input
targets are pixels of the input, and tap p of target t reads the output j with s·j + d·p − padding = t, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

from manualgrad.cpu import memory

ROWS_PER_RUN = 4  # at most, so that the sources of a run of rows stay in the cache


@dataclass(frozen=True)
class Runs:
    """Runs along one dimension.

    Attributes:
        table: (runs, 7) int64, the fields ``RUN_FIELDS`` of the kernel.
        tap_step: from one tap of a target to the next: entries of the kernel
        source_step: and source pixels.
    """

    table: Tensor
    tap_step: int
    source_step: int


@lru_cache(maxsize=256)
def forward_runs(
    size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int, flip: bool, max_count: int | None
) -> Runs:
    """Runs of output pixels, whose sources are pixels of the input."""
    targets = []
    for j in range(out_size):
        taps = [p for p in range(kernel) if 0 <= stride * j + dilation * p - padding < size]
        targets.append((j, stride * j + dilation * taps[0] - padding if taps else 0, taps))
    return _runs(targets, 1, dilation, kernel, flip, stride, max_count)


@lru_cache(maxsize=256)
def grad_input_runs(
    size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int, flip: bool, max_count: int | None
) -> Runs:
    """Runs of input pixels, whose sources are pixels of the output."""
    tap_step = stride // gcd(stride, dilation)
    source_step = -(dilation * tap_step // stride)
    targets = []
    for t in range(size):
        taps = [
            p
            for p in range(kernel)
            if (t + padding - dilation * p) % stride == 0 and 0 <= (t + padding - dilation * p) // stride < out_size
        ]
        targets.append((t, (t + padding - dilation * taps[0]) // stride if taps else 0, taps))
    return _runs(targets, tap_step, source_step, kernel, flip, stride, max_count)


def _runs(
    targets: list[tuple[int, int, list[int]]], tap_step: int, source_step: int, kernel: int, flip: bool, stride: int,
    max_count: int | None,
) -> Runs:  # fmt: skip
    """``targets`` are numbers, first sources, and taps."""
    by_taps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for target, source, taps in targets:
        by_taps.setdefault((taps[0] if taps else 0, len(taps)), []).append((target, source))
    runs = []
    for (first_tap, tap_count), members in by_taps.items():
        step = max_count or len(members)
        if flip:
            first_tap = kernel - 1 - first_tap
        for start in range(0, len(members), step):
            part = members[start : start + step]
            (first_target, first_source), last = part[0], part[-1]
            n = max(1, len(part) - 1)
            steps = [(last[i] - part[0][i]) // n for i in range(2)]
            runs.append((first_target, steps[0], len(part), first_source, steps[1], first_tap, tap_count))
    return Runs(_table(sorted(runs)), -tap_step if flip else tap_step, source_step)


@dataclass(frozen=True)
class WeightTables:
    """Tables of the kernel for the weight's gradient: ``row_taps`` (kH, 4), ``segments`` (segments, 4), sorted by the
    number of entries, and the number of segments with 1, 2, 3 and 4 entries."""

    row_taps: Tensor
    segments: Tensor
    segments_of: tuple[int, int, int, int]


@lru_cache(maxsize=256)
def weight_tables(
    size: tuple[int, int], out_size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], flip: bool, max_entries: int,
) -> WeightTables:  # fmt: skip
    """Tables for an image of ``size``, whose ``padding`` is (top, left)."""
    rows, columns = (
        [
            _met(size[n], out_size[n], stride[n], dilation[n] * p - padding[n], kernel[n] - 1 - p if flip else p)
            for p in range(kernel[n])
        ]
        for n in range(2)
    )
    segments: list[tuple[int, tuple[int, int, int, int]]] = []
    num_tiles = -(-len(columns) // max_entries)
    for n in range(num_tiles):
        tile = columns[len(columns) * n // num_tiles : len(columns) * (n + 1) // num_tiles]
        first, stop = max(entry[1] for entry in tile), min(entry[2] for entry in tile)
        if first >= stop:  # no column meets all entries
            first = stop = max(entry[2] for entry in tile)
        segments.append((len(tile), (tile[0][0], first, stop, tile[0][3])))
        for tap, entry_first, entry_stop, offset in tile:
            segments.append((1, (tap, entry_first, min(first, entry_stop), offset)))
            segments.append((1, (tap, max(stop, entry_first), entry_stop, offset)))
    segments = sorted(entry for entry in segments if entry[1][1] < entry[1][2])
    counts = tuple(sum(entries == size for entries, _ in segments) for size in (1, 2, 3, 4))
    return WeightTables(_table(rows), _table([segment for _, segment in segments]), counts)


def _met(size: int, out_size: int, stride: int, offset: int, tap: int) -> tuple[int, int, int, int]:
    """``tap``, and the range of j for which stride·j + offset is in an image of ``size``, with this offset."""
    first, stop = max(0, -(offset // stride)), min(out_size, -(-(size - offset) // stride))
    return tap, first, max(first, stop), offset


def _table(records: Sequence[Sequence[int]]) -> Tensor:
    words = torch.tensor(records, dtype=torch.int64, device="cpu")
    return memory.new(*words.shape, dtype=torch.int64).copy_(words)
