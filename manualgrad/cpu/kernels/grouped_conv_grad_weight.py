"""W(g, x) for convolutions with few channels in a group, channels last; depthwise is one channel.

    ∂C_ijk/∂w_ctuv = x_(s1·i+P−c)(s2·j+Q−t)u δ_kv                                (3)

For each entry (p, q) of the kernel the products g_ijk x_(s1·i+p)(s2·j+q)u are added up over i and j. A tile of
registers holds the sums of neighbouring entries of one kernel row, so that a vector of g is loaded once for them all.
A sum over some rows of an image is added to the task's gradient, which is thereby a sum of partial sums.

``cpu/grouped_conv_runs.py`` makes the tables: rows of the kernel with the rows of g that they meet, and *segments*,
ranges of columns of g that meet one to four neighbouring entries within the image.
"""

from __future__ import annotations

from itertools import product

from manualgrad.cpu.grouped_conv_runs import MAX_SEGMENT_TAPS, ROW_FIELDS, SEGMENT_FIELDS, WEIGHT_VECTORS
from manualgrad.cpu.ir.tiles import clear, task_range
from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.grouped_conv import (
    CHANNELS_PER_BLOCK,
    channel_vectors,
    groups_of_tile,
    load_group_channel,
    prefetch_lines,
    read_record,
    vectors_of_group,
)
from manualgrad.cpu.signature import INT, POINTER, Kernel, Signature

ACCUMULATORS = 12  # of 16 registers; one has a vector of g, and one a factor

_TYPES = {
    "grad_out": POINTER,  # (N, H_out, W_out, C)
    "x": POINTER,  # (N, H, W, C)
    "grad_weight_parts": POINTER,  # (tasks, blocks of channels, kH, kW, G, WEIGHT_VECTORS · lanes)
    "part_numel": INT,
    "row_taps": POINTER,  # ROW_FIELDS of each row of the kernel
    "segments": POINTER,  # SEGMENT_FIELDS of each, those of one entry first
    **{f"segments_of_{size}": INT for size in (1, 2, 3, 4)},
    "column_tap_step": INT,  # 1, or -1 for a flipped kernel
    "row_stride": INT,
    "column_stride": INT,
    "column_dilation": INT,
    "batch_size": INT,
    "row_blocks": INT,  # of an image
    "rows_per_block": INT,
    "share": INT,  # row blocks per task
    "height": INT,
    "width": INT,
    "out_height": INT,
    "out_width": INT,
    "channels": INT,
    "kernel_height": INT,
    "kernel_width": INT,
}


def grouped_conv_grad_weight(group_size: int) -> Kernel:
    """Return the kernel for groups of ``group_size`` channels, a power of two, in x and grad_out."""

    def body(emit: Emitter, a: Arguments) -> None:
        pixel, tap = a.channels * 4, WEIGHT_VECTORS * emit.vector_bytes * group_size
        part = a.grad_weight_parts + a.task * a.part_numel * 4
        clear(emit, part, a.part_numel)
        with emit.loop(*task_range(emit, a, a.batch_size * a.row_blocks)) as item:
            image, first_row = item // a.row_blocks, item % a.row_blocks * a.rows_per_block
            last = first_row + a.rows_per_block
            last_row = emit.select(last < a.out_height, last, a.out_height)
            grad_out = a.grad_out + image * a.out_height * a.out_width * pixel
            x = a.x + image * a.height * a.width * pixel
            _prefetch(emit, grad_out, first_row, last_row, a.out_height, a.out_width * pixel)
            _prefetch(emit, x, first_row * a.row_stride, last_row * a.row_stride, a.height, a.width * pixel)
            blocks = emit.block_loop(a.channels, CHANNELS_PER_BLOCK)
            with blocks as (channel, stop), emit.loop(0, a.kernel_height) as n:
                row = read_record(emit, a.row_taps, ROW_FIELDS, n)
                start = emit.select(first_row < row.first, row.first, first_row)
                end = emit.select(row.stop < last_row, row.stop, last_row)
                rows = Arguments(
                    count=end - start,
                    grad_out=grad_out + start * a.out_width * pixel,
                    x=x + (start * a.row_stride + row.offset) * a.width * pixel,
                    part=part + row.tap * a.kernel_width * tap,
                )
                with emit.if_then(rows.count > 0):
                    _kernel_row(emit, a, group_size, rows, channel, stop)

    return Kernel(Signature("grouped_conv_grad_weight", _TYPES), body)


def _prefetch(emit: Emitter, image: Value, start: Value, stop: Value, height: Value, row_bytes: Value) -> None:
    """Ask for those of some rows that an image has."""
    end = emit.select(stop < height, stop, height)
    prefetch_lines(emit, image + start * row_bytes, (end - start) * row_bytes)


def _kernel_row(emit: Emitter, a: Arguments, group_size: int, rows: Arguments, channel: Value, stop: Value) -> None:
    tap, lanes = WEIGHT_VECTORS * emit.vector_bytes * group_size, WEIGHT_VECTORS * emit.lanes
    block_bytes, first_segment = a.kernel_height * a.kernel_width * tap, emit.constant(INT64, 0)
    for entries in range(1, MAX_SEGMENT_TAPS[group_size] + 1):
        last_segment = first_segment + getattr(a, f"segments_of_{entries}")
        with emit.loop(first_segment, last_segment) as n:
            segment = read_record(emit, a.segments, SEGMENT_FIELDS, n)
            of_group = vectors_of_group(emit, group_size)
            vectors_at_once = [v for v in (4, 2, 1) if v * entries * group_size <= ACCUMULATORS or v == of_group]
            positions_at_once = min(group_size, ACCUMULATORS // (entries * of_group))
            for c, vectors, mask in channel_vectors(emit, channel, stop, tuple(vectors_at_once), group_size):
                block = rows.part + c // lanes * block_bytes + c % lanes * 4
                for first in range(0, group_size, positions_at_once):
                    positions = range(first, min(first + positions_at_once, group_size))
                    totals = _tile(emit, a, group_size, rows, segment, c * 4, entries, vectors, mask, positions)
                    for (q, r, v), total in totals.items():
                        entry = block + (segment.first_tap + a.column_tap_step * q) * tap
                        vector = r * WEIGHT_VECTORS + v % WEIGHT_VECTORS
                        address = entry + block_bytes * (v // WEIGHT_VECTORS) + vector * emit.vector_bytes
                        emit.store(total + emit.load(address, emit.float_vector), address)
        first_segment = last_segment


def _tile(
    emit: Emitter, a: Arguments, group_size: int, rows: Arguments, segment: Arguments, channel_bytes: Value,
    entries: int, vectors: int, mask: Value | None, positions: range,
) -> dict[tuple[int, int, int], Value]:  # fmt: skip
    """Return sums over the rows and the segment's columns: by entry, channel of the group, and vector.

    ``positions`` has the channels of the group."""
    pixel = a.channels * 4
    entry_bytes, column_bytes = a.column_dilation * pixel, a.column_stride * pixel
    first_x = rows.x + (segment.first * a.column_stride + segment.offset) * pixel + channel_bytes
    first_g = rows.grad_out + segment.first * pixel + channel_bytes
    keys = [(q, r, v) for q in range(entries) for r in positions for v in range(vectors)]
    totals = {key: emit.variable(emit.constant(emit.float_vector, 0)) for key in keys}
    with emit.loop(0, rows.count) as i, emit.loop(0, segment.stop - segment.first) as j:
        x = first_x + i * a.row_stride * a.width * pixel + j * column_bytes
        g = first_g + (i * a.out_width + j) * pixel
        grads = [emit.masked_load(g + v * emit.vector_bytes, mask, 0) for v in range(vectors)]
        for q, group, r in product(range(entries), groups_of_tile(emit, group_size, vectors), positions):
            address = x + entry_bytes * q + group[0] * emit.vector_bytes
            factor = load_group_channel(emit, address, mask, group_size, r)
            for v in group:
                totals[q, r, v].set(emit.fma(factor, grads[v], totals[q, r, v].get()))  # eq. (3)
    return {key: total.get() for key, total in totals.items()}
