"""C(x, w) + b and X(g, w) for convolutions with few channels in a group, channels last; depthwise is one channel.

    C_ijk       = Σ_pqr x_(s1·i+p)(s2·j+q)r w_(P−p)(Q−q)rk                       (1)
    X(g, w)_tuv = Σ_ijk g_ijk w_(P+s1·i−t)(Q+s2·j−u)vk, where both indices are in range   (2)

Both are sums over taps, the entries (p, q) of the kernel: each *target* pixel adds up *source* pixels times weights.
In forward the targets are pixels of the output; for the gradient of the input they are pixels of the input, and g has
the sources. ``cpu/grouped_conv_runs.py`` lists, for rows and for columns, *runs* of targets with the same taps. A run
of rows and a run of columns make a rectangle in which no tap is outside of the image, so that the inner loops test
nothing, whatever the padding, stride and dilation are.

Vectors run over the channels. With ``group_size`` G > 1 a vector has several groups: for each of the G channels of a
group, a shuffle puts it into all lanes of its group, and the vector of weights belongs to that channel.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.grouped_conv_runs import RUN_FIELDS, WEIGHT_VECTORS
from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, Kernel, Signature

PIXELS_PER_TILE = 4
CHANNELS_PER_BLOCK = 1024
VECTORS_PER_TILE = 2
VECTORS_PER_PIXEL = (8, 4, 2, 1)  # of a tile that is one pixel

_TYPES = {
    "source": POINTER,  # (N, source_height, source_width, C)
    "target": POINTER,  # (N, target_height, target_width, C)
    "weight": POINTER,  # (kH, kW, G, padded_channels)
    "bias": POINTER,  # (padded_channels)
    "row_runs": POINTER,  # RUN_FIELDS of each, 8 bytes each
    "column_runs": POINTER,
    "num_row_runs": INT,
    "num_column_runs": INT,
    "row_tap_step": INT,  # from one tap of a run to the next: rows of the kernel
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
    """Return the kernel for groups of ``group_size`` channels, a power of two, in sources and targets."""

    def body(emit: Emitter, a: Arguments) -> None:
        pixel = a.channels * 4
        tap = WEIGHT_VECTORS * emit.vector_bytes * group_size
        with emit.loop(*task_range(emit, a, a.batch_size * a.num_row_runs)) as item:
            image, rows = item // a.num_row_runs, read_record(emit, a.row_runs, RUN_FIELDS, item % a.num_row_runs)
            source = a.source + (image * a.source_height + rows.first_source) * a.source_width * pixel
            target = a.target + (image * a.target_height + rows.first_target) * a.target_width * pixel
            with emit.loop(0, a.num_column_runs) as n:
                columns = read_record(emit, a.column_runs, RUN_FIELDS, n)
                taps = Arguments(
                    rows=rows.tap_count,
                    columns=columns.tap_count,
                    next_row_source_bytes=a.row_source_step * a.source_width * pixel
                    - (columns.tap_count - 1) * a.column_source_step * pixel,
                    column_source_bytes=a.column_source_step * pixel,
                    next_row_weight_bytes=a.row_tap_step * a.kernel_width * tap
                    - (columns.tap_count - 1) * a.column_tap_step * tap,
                    column_weight_bytes=a.column_tap_step * tap,
                    block_bytes=a.kernel_height * a.kernel_width * tap,
                )
                along_rows = (
                    rows.count,
                    rows.source_step * a.source_width * pixel,
                    rows.target_step * a.target_width * pixel,
                )
                along_columns = columns.count, columns.source_step * pixel, columns.target_step * pixel
                by_column = rows.count > columns.count  # tiles lie along the longer side
                outer, inner = (
                    [emit.select(by_column, *pair) for pair in zip(*sides, strict=True)]
                    for sides in ((along_columns, along_rows), (along_rows, along_columns))
                )
                _rectangle(
                    emit, a, group_size, taps, outer, inner,
                    source + columns.first_source * pixel,
                    target + columns.first_target * pixel,
                    a.weight + (rows.first_tap * a.kernel_width + columns.first_tap) * tap,
                )  # fmt: skip

    return Kernel(Signature("grouped_conv", _TYPES), body)


def read_record(emit: Emitter, table: Value, fields: tuple[str, ...], number: Value) -> Arguments:
    """Read the record ``number`` of a table, 8 bytes for each of its fields."""
    address = table + number * (8 * len(fields))
    return Arguments(**{name: emit.load(address + 8 * n, INT64) for n, name in enumerate(fields)})


def _rectangle(
    emit: Emitter, a: Arguments, group_size: int, taps: Arguments, outer: list[Value], inner: list[Value],
    source: Value, target: Value, weight: Value,
) -> None:  # fmt: skip
    """Compute all pixels of a rectangle; ``outer`` and ``inner`` are pixels, source and target bytes of a step."""
    (outer_count, *outer_bytes), (inner_count, *inner_bytes) = outer, inner
    block = WEIGHT_VECTORS * emit.lanes
    is_short = inner_count < PIXELS_PER_TILE

    def tile(pixel_n: Value, outer_n: Value, channel: Value, pixels: int, vectors: int, mask: Value | None) -> None:
        x, y = (
            address + outer_n * step + pixel_n * inner_step + channel * 4
            for address, step, inner_step in zip((source, target), outer_bytes, inner_bytes, strict=True)
        )
        totals = _tile(
            emit, a, group_size, taps, x, weight + channel // block * taps.block_bytes + channel % block * 4, a.bias + channel * 4, inner_bytes[0], pixels, vectors, mask
        )
        for n in range(pixels):
            for v in range(vectors):
                emit.masked_store(totals[n][v], y + inner_bytes[1] * n + v * emit.vector_bytes, mask)

    with emit.if_then(is_short == 0):
        with emit.block_loop(a.channels, CHANNELS_PER_BLOCK) as (first, stop):
            with emit.loop(0, outer_count) as m, emit.loop(0, inner_count, PIXELS_PER_TILE) as n:
                last = inner_count - PIXELS_PER_TILE  # the last tile may compute some pixels again
                for channel, vectors, mask in channel_vectors(emit, first, stop, (VECTORS_PER_TILE, 1)):
                    tile(emit.select(n < last, n, last), m, channel, PIXELS_PER_TILE, vectors, mask)
    with emit.if_then(is_short):
        with emit.loop(0, outer_count) as m, emit.loop(0, inner_count) as n:
            for channel, vectors, mask in channel_vectors(emit, emit.constant(INT64, 0), a.channels, VECTORS_PER_PIXEL):
                tile(n, m, channel, 1, vectors, mask)


def channel_vectors(
    emit: Emitter, start: Value, channels: Value, sizes: tuple[int, ...]
) -> Iterator[tuple[Value, int, Value | None]]:
    """Cover the channels with tiles of ``sizes`` vectors, the last size 1: first channel, size, and mask of each."""
    for size in sizes:
        stop = channels - (channels - start) % (size * emit.lanes)
        with emit.loop(start, stop, size * emit.lanes) as channel:
            yield channel, size, None
        start = stop
    with emit.if_then(start < channels):
        yield start, 1, emit.first_lanes(channels - start)


def _tile(
    emit: Emitter, a: Arguments, group_size: int, taps: Arguments, source: Value, weight: Value, bias: Value,
    pixel_bytes: Value, pixels: int, vectors: int, mask: Value | None,
) -> list[list[Value]]:  # fmt: skip
    """Return the sums of ``pixels`` times ``vectors`` vectors."""
    biases = [emit.load(bias + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
    totals = [[emit.variable(b) for b in biases] for _ in range(pixels)]
    with emit.loop(0, taps.rows) as p, emit.loop(0, taps.columns) as q:
        x = source + p * (taps.next_row_source_bytes+(taps.columns-1)*taps.column_source_bytes) + q * taps.column_source_bytes
        w = weight + p * (taps.next_row_weight_bytes+(taps.columns-1)*taps.column_weight_bytes) + q * taps.column_weight_bytes
        for r in range(group_size):
            weights = [
                emit.load(
                    w + taps.block_bytes * (v // WEIGHT_VECTORS) + (WEIGHT_VECTORS * r + v % WEIGHT_VECTORS) * emit.vector_bytes,
                    emit.float_vector,
                )
                for v in range(vectors)
            ]
            for n in range(pixels):
                for v in range(vectors):
                    value = load_group_channel(emit, x + pixel_bytes * n + v * emit.vector_bytes, mask, group_size, r)
                    total = totals[n][v]
                    total.set(emit.fma(value, weights[v], total.get()))  # eq. (1), (2)
    return [[total.get() for total in row] for row in totals]


def load_group_channel(emit: Emitter, address: Value, mask: Value | None, group_size: int, position: int) -> Value:
    """Load a vector of channels, in which all lanes of a group have the channel at ``position`` in the group."""
    if group_size == emit.lanes:
        return emit.load_splat(address + 4 * position)
    vector = emit.masked_load(address, mask, 0)
    return vector if group_size == 1 else emit.splat_in_groups(vector, group_size, position)
