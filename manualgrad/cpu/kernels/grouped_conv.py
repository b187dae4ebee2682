"""C(x, w) + b and X(g, w) for convolutions with few channels in a group, channels last; depthwise is one channel.

    C_ijk       = Σ_pqr x_(s1·i+p)(s2·j+q)r w_(P−p)(Q−q)rk                       (1)
    X(g, w)_tuv = Σ_ijk g_ijk w_(P+s1·i−t)(Q+s2·j−u)vk, both indices in range    (2)

Both are sums over taps, the entries (p, q) of the kernel: each *target* pixel adds up *source* pixels times weights.
In forward the targets are pixels of the output; for the gradient of the input they are pixels of the input, and g
has the sources. ``cpu/grouped_conv_runs.py`` lists, for rows and for columns, *runs* of targets with the same taps.
In the rectangle that a run of rows and one of columns make, no tap is outside of the image: the inner loops test
nothing, and padding is skipped, not multiplied.

Vectors run over the channels. With a group size G > 1 a vector has several groups. For each of the G channels of a
group, a shuffle puts it into all lanes of the group, and a vector of weights belongs to it. Where a vector is one
group, or two are, each source is loaded into all lanes, and a tile has more pixels, all of which a vector of weights
serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product

from manualgrad.cpu.grouped_conv_runs import RUN_FIELDS, WEIGHT_VECTORS
from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, Kernel, Signature

TILES, VECTORS_PER_TILE = (4,), 2  # pixels and vectors: 8 sums, as many as two multipliers have in flight
TILES_OF_WHOLE_GROUPS = (6, 5, 4)  # pixels, where a vector is one group; each less by 1, as _pixels_per_tile needs
VECTORS_PER_PIXEL = (8, 4, 2, 1)  # of a tile that is one pixel
POSITIONS_PER_LOOP = 16  # channels of a group whose products are written one behind the other
CHANNELS_PER_BLOCK = 64  # that all pixels of a rectangle compute first, so that the cache holds their weights

CACHE_LINE_BYTES = 64

_TYPES = {
    "source": POINTER,  # (N, source_height, source_width, C)
    "target": POINTER,  # (N, target_height, target_width, C)
    "weight": POINTER,  # as pack_grouped.py packs it
    "bias": POINTER,  # the same
    "row_runs": POINTER,  # RUN_FIELDS of each
    "column_runs": POINTER,
    "num_row_runs": INT,
    "num_column_runs": INT,
    "row_tap_step": INT,  # from one tap of a target to the next: rows of the kernel
    "row_source_step": INT,  # and rows of the sources
    "column_tap_step": INT,
    "column_source_step": INT,
    "batch_size": INT,
    "share": INT,  # row runs of images per task
    "source_height": INT,
    "source_width": INT,
    "target_height": INT,
    "target_width": INT,
    "channels": INT,
    "kernel_height": INT,
    "kernel_width": INT,
}


def grouped_conv(group_size: int) -> Kernel:
    """Return the kernel for groups of ``group_size`` channels, in sources and in targets."""

    def body(emit: Emitter, a: Arguments) -> None:
        pixel, tap = a.channels * 4, WEIGHT_VECTORS * emit.vector_bytes * group_size
        source_row, target_row = a.source_width * pixel, a.target_width * pixel
        with emit.loop(*task_range(emit, a, a.batch_size * a.num_row_runs)) as item:
            image, rows = item // a.num_row_runs, read_record(emit, a.row_runs, RUN_FIELDS, item % a.num_row_runs)
            source = a.source + (image * a.source_height + rows.first_source) * source_row
            target = a.target + (image * a.target_height + rows.first_target) * target_row
            if group_size >= emit.lanes:
                to_last_tap, zero = (rows.tap_count - 1) * a.row_source_step, emit.constant(INT64, 0)
                first_row = emit.select(to_last_tap < 0, to_last_tap, zero)
                last_row = emit.select(to_last_tap > 0, to_last_tap, zero) + (rows.count - 1) * rows.source_step
                prefetch_lines(emit, source + first_row * source_row, (last_row - first_row + 1) * source_row)
            with emit.loop(0, a.num_column_runs) as n:
                columns = read_record(emit, a.column_runs, RUN_FIELDS, n)
                taps = Arguments(
                    rows=rows.tap_count,
                    columns=columns.tap_count,
                    weight=a.weight + (rows.first_tap * a.kernel_width + columns.first_tap) * tap,
                    row_source_bytes=a.row_source_step * source_row,
                    column_source_bytes=a.column_source_step * pixel,
                    row_weight_bytes=a.row_tap_step * a.kernel_width * tap,
                    column_weight_bytes=a.column_tap_step * tap,
                    block_bytes=a.kernel_height * a.kernel_width * tap,
                )
                down = rows.count, rows.source_step * source_row, rows.target_step * target_row
                across = columns.count, columns.source_step * pixel, columns.target_step * pixel
                is_higher = rows.count > columns.count  # tiles lie along the longer side
                outer, inner = (
                    [emit.select(is_higher, *pair) for pair in zip(*sides, strict=True)]
                    for sides in ((across, down), (down, across))
                )
                x, out = source + columns.first_source * pixel, target + columns.first_target * pixel
                _rectangle(emit, a, group_size, taps, outer, inner, x, out)

    return Kernel(Signature("grouped_conv", _TYPES), body)


def prefetch_lines(emit: Emitter, start: Value, count: Value) -> None:
    """Ask for ``count`` bytes in the order of their addresses, which the loops of a kernel do not follow."""
    with emit.loop(0, count, CACHE_LINE_BYTES) as offset:
        emit.prefetch(start + offset)


def read_record(emit: Emitter, table: Value, fields: tuple[str, ...], number: Value) -> Arguments:
    """Read the record ``number`` of a table, 8 bytes for each of its fields."""
    address = table + number * (8 * len(fields))
    return Arguments(**{name: emit.load(address + 8 * n, INT64) for n, name in enumerate(fields)})


def _rectangle(
    emit: Emitter, a: Arguments, group_size: int, taps: Arguments, outer: list[Value], inner: list[Value],
    source: Value, target: Value,
) -> None:  # fmt: skip
    """Compute all pixels of a rectangle; ``outer`` and ``inner`` are pixels, source and target bytes of a step."""
    (outer_count, *outer_bytes), (inner_count, *inner_bytes) = outer, inner

    def tile(m: Value, n: Value, channel: Value, pixels: int, vectors: int, mask: Value | None) -> None:
        x, out = (
            address + m * outer_step + n * inner_step + channel * 4
            for address, outer_step, inner_step in zip((source, target), outer_bytes, inner_bytes, strict=True)
        )
        totals = _tile(emit, a, group_size, taps, x, inner_bytes[0], channel, pixels, vectors, mask)
        for (pixel, v), total in totals.items():
            emit.masked_store(total, out + inner_bytes[1] * pixel + v * emit.vector_bytes, mask)

    sizes = TILES_OF_WHOLE_GROUPS if group_size >= emit.lanes else TILES
    pixels = _pixels_per_tile(emit, inner_count, sizes)
    for size in sizes:
        with (
            emit.if_then(pixels == size),
            emit.block_loop(a.channels, CHANNELS_PER_BLOCK) as (start, stop),
            emit.loop(0, outer_count) as m,
            emit.loop(0, inner_count, size) as n,
        ):
            last = inner_count - size  # the last tile may compute some pixels again
            for channel, vectors, mask in channel_vectors(emit, start, stop, (VECTORS_PER_TILE, 1), group_size):
                tile(m, emit.select(n < last, n, last), channel, size, vectors, mask)
    with emit.if_then(pixels == 1), emit.loop(0, outer_count) as m, emit.loop(0, inner_count) as n:
        start = emit.constant(INT64, 0)
        for channel, vectors, mask in channel_vectors(emit, start, a.channels, VECTORS_PER_PIXEL, group_size):
            tile(m, n, channel, 1, vectors, mask)


def vectors_of_group(emit: Emitter, group_size: int) -> int:
    """Return the vectors of a group, 1 if a vector has several groups."""
    return max(1, group_size // emit.lanes)


def _pixels_per_tile(emit: Emitter, count: Value, sizes: tuple[int, ...]) -> Value:
    """Return the one of ``sizes``, in falling order, whose tiles compute the fewest of ``count`` pixels again, or 1.

    Between the least and the largest size, each number must be one of them."""
    best = emit.select(count < sizes[-1], emit.constant(INT64, 1), emit.constant(INT64, sizes[0]))
    computed = (count + (sizes[0] - 1)) // sizes[0] * sizes[0]
    for size in sizes[1:]:
        by_size = (count + (size - 1)) // size * size
        is_better = (by_size < computed) & (count > size - 1)
        best = emit.select(is_better, emit.constant(INT64, size), best)
        computed = emit.select(is_better, by_size, computed)
    return best


def channel_vectors(
    emit: Emitter, start: Value, stop: Value, sizes: tuple[int, ...], group_size: int
) -> Iterator[tuple[Value, int, Value | None]]:
    """Cover ``range(start, stop)`` with tiles of ``sizes`` vectors, the last size 1: first channel, size and mask.

    Where a group is one or two vectors, tiles have whole groups, and no channels are left for a mask."""
    for size in sizes:
        if size % vectors_of_group(emit, group_size):
            continue
        end = stop - (stop - start) % (size * emit.lanes)
        with emit.loop(start, end, size * emit.lanes) as channel:
            yield channel, size, None
        start = end
    if group_size >= emit.lanes:
        return
    with emit.if_then(start < stop):
        yield start, 1, emit.first_lanes(stop - start)


def _tile(
    emit: Emitter, a: Arguments, group_size: int, taps: Arguments, source: Value, pixel_bytes: Value, channel: Value,
    pixels: int, vectors: int, mask: Value | None,
) -> dict[tuple[int, int], Value]:  # fmt: skip
    """Return the sums of some pixels and vectors of channels, which begin with ``channel``."""
    block, bias = WEIGHT_VECTORS * emit.lanes, a.bias + channel * 4
    weight = taps.weight + channel // block * taps.block_bytes + channel % block * 4
    biases = [emit.load(bias + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
    totals = {(n, v): emit.variable(biases[v]) for n in range(pixels) for v in range(vectors)}
    # registers hold one group channel's weights if each is loaded into all lanes, else those of all, and one source
    is_whole, at_once = group_size >= emit.lanes, min(group_size, POSITIONS_PER_LOOP)
    num_blocks = group_size // at_once
    rounds = [[r] for r in range(at_once)] if is_whole else [list(range(group_size))]
    groups = groups_of_tile(emit, group_size, vectors)
    with emit.loop(0, taps.rows) as p:
        # a sum of the sums of kernel rows, each of several channels, rounds less than one long sum
        sums = (
            totals if group_size < 4 else {key: emit.variable(emit.constant(emit.float_vector, 0)) for key in totals}
        )
        with emit.loop(0, taps.columns) as q:
            x = source + p * taps.row_source_bytes + q * taps.column_source_bytes
            w = weight + p * taps.row_weight_bytes + q * taps.column_weight_bytes
            with emit.loop(0, num_blocks) if num_blocks > 1 else nullcontext(emit.constant(INT64, 0)) as block_number:
                sources = x + block_number * (4 * at_once)
                block_weight = w + block_number * (at_once * WEIGHT_VECTORS * emit.vector_bytes)
                for positions, group in product(rounds, groups):
                    keys = list(product(positions, group))
                    weights = {key: _load_weight(emit, block_weight, taps.block_bytes, *key) for key in keys}
                    for n, r in product(range(pixels), positions):
                        address = sources + pixel_bytes * n + group[0] * emit.vector_bytes
                        factor = load_group_channel(emit, address, mask, group_size, r)
                        for v in group:
                            sums[n, v].set(emit.fma(factor, weights[r, v], sums[n, v].get()))  # eq. (1), (2)
        if sums is not totals:
            for key, total in totals.items():
                total.add(sums[key].get())
    return {key: total.get() for key, total in totals.items()}


def groups_of_tile(emit: Emitter, group_size: int, vectors: int) -> list[range]:
    """Return the vectors of each group of a tile, or single vectors of several groups."""
    size = vectors_of_group(emit, group_size)
    return [range(first, first + size) for first in range(0, vectors, size)]


def _load_weight(emit: Emitter, address: Value, block_bytes: Value, position: int, vector: int) -> Value:
    """Load the weights of a vector of channels, for the channel at ``position`` in the group."""
    offset = (WEIGHT_VECTORS * position + vector % WEIGHT_VECTORS) * emit.vector_bytes
    return emit.load(address + block_bytes * (vector // WEIGHT_VECTORS) + offset, emit.float_vector)


def load_group_channel(emit: Emitter, address: Value, mask: Value | None, group_size: int, position: int) -> Value:
    """Load a vector of channels, in which all lanes of a group have the channel at ``position`` in the group.

    ``address`` is that of the vector, or of a group that is one or two vectors."""
    if group_size >= emit.lanes:
        return emit.load_splat(address + 4 * position)
    vector = emit.masked_load(address, mask, 0)
    return vector if group_size == 1 else emit.splat_in_groups(vector, group_size, position)
