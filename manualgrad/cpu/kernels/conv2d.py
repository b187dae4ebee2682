"""A convolution of images with channels last: (1) with (17), and (2), which is a convolution of the gradients.

    out_ijk = b_k + Σ_pqr x_(s1·i+p)(s2·j+q)r w_pqrk                             (1), (17)

The sum over r, a *run*, is over neighbouring floats of x. The registers hold a tile of the result: TILE_ROWS windows,
and some vectors of channels k, a *panel*. Each number of x is multiplied with the vectors of the weight that belong
to it, which lie one behind the other in the packed weight (``pack_panels.py``).

K, the taps and runs, is divided into blocks whose weights stay in the nearest cache, while all tiles of a chunk of
windows are computed. Sums of a block are added to those of the blocks before, in scratch memory: a sum of sums rounds
less than one long sum.

A task computes one part of the windows for one part of the panels.
"""

from __future__ import annotations

from contextlib import contextmanager
from collections.abc import Iterator

from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_windows import (
    TILE_ROWS,
    WINDOW_ARGUMENTS,
    fill_table,
    load_address,
    panel_vectors,
)
from manualgrad.cpu.signature import INT, POINTER, kernel


@kernel(
    **WINDOW_ARGUMENTS,
    packed_weight=POINTER,  # of each group its panels: a row for the bias and K rows, of whole vectors
    out=POINTER,  # pixels of ``groups * channels`` floats
    partial_sums=POINTER,  # scratch memory of each task: (chunk, a panel's floats)
    window_share=INT,  # windows per task
    window_parts=INT,  # tasks for all windows
    panel_share=INT,  # panels per task, all groups counted
    groups=INT,
    channels=INT,  # of the result, in a group
    run=INT,  # floats of x for each tap, in a group
    taps_per_block=INT,
    run_per_block=INT,
    out_image_bytes=INT,  # from the window of one image to that of the next
    out_row_bytes=INT,
    out_column_bytes=INT,
)
def conv2d(emit: Emitter, a: Arguments) -> None:
    """Compute this task's windows and panels."""
    a.panel_vectors = panel_vectors(emit)
    panel_floats = emit.lanes * panel_vectors(emit)
    a.panels = (a.channels + (panel_floats - 1)) // panel_floats
    a.vectors = (a.channels + (emit.lanes - 1)) // emit.lanes
    a.rows_of_panel = a.num_taps * a.run + 1
    table = a.table + a.task * (a.num_taps + 1) * a.chunk * 8
    a.partial_sums = a.partial_sums + a.task * a.chunk * (panel_floats * 4)
    first_window, first_panel = a.task % a.window_parts * a.window_share, a.task // a.window_parts * a.panel_share
    last_window, last_panel = (
        minimum(emit, *pair)
        for pair in ((first_window + a.window_share, a.windows), (first_panel + a.panel_share, a.panels * a.groups))
    )
    with emit.loop(first_window, last_window, a.chunk) as start:
        count = minimum(emit, last_window - start, a.chunk)
        fill_table(emit, a, table, (start, start + count), (a.out_image_bytes, a.out_row_bytes, a.out_column_bytes))
        with emit.loop(first_panel, last_panel) as number:
            group, panel = number // a.panels, number % a.panels
            vectors_before = group * a.vectors + panel * panel_vectors(emit)
            weight = a.packed_weight + vectors_before * a.rows_of_panel * emit.vector_bytes
            channel = panel * panel_floats
            for vectors, is_chosen in panel_sizes(emit, a.vectors - panel * panel_vectors(emit)):
                with emit.if_then(is_chosen):
                    _panel(emit, a, table, count, group, channel, weight, vectors)


def minimum(emit: Emitter, m: Value, n: Value) -> Value:
    return emit.select(m < n, m, n)


def panel_sizes(emit: Emitter, vectors_left: Value) -> Iterator[tuple[int, Value]]:
    """Numbers of vectors that a panel can have, and the condition for each."""
    largest = panel_vectors(emit)
    for vectors in range(1, largest + 1):
        yield vectors, (vectors_left > largest - 1 if vectors == largest else vectors_left == vectors)


def _panel(
    emit: Emitter, a: Arguments, table: Value, count: Value, group: Value, channel: Value, weight: Value, vectors: int
) -> None:
    """Compute all windows of a chunk for one panel."""
    group_bytes, out = group * a.run * 4, a.out + (group * a.channels + channel) * 4
    last_channels = a.channels - channel - (vectors - 1) * emit.lanes
    is_whole, mask = last_channels > emit.lanes - 1, emit.first_lanes(minimum_lanes(emit, last_channels))
    biases = [emit.load(weight + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
    first_row, row_bytes = weight + vectors * emit.vector_bytes, vectors * emit.vector_bytes
    offsets = table + a.num_taps * a.chunk * 8
    with (
        emit.block_loop(a.num_taps, a.taps_per_block) as taps,
        emit.block_loop(a.run, a.run_per_block) as run,
    ):
        is_first, is_last = (taps[0] + run[0]) == 0, (taps[1] == a.num_taps) & (run[1] == a.run)
        with emit.loop(0, count, TILE_ROWS) as window:
            sums = [[emit.variable(emit.constant(emit.float_vector, 0)) for _ in biases] for _ in range(TILE_ROWS)]
            with emit.loop(*taps) as tap:
                entries = table + (tap * a.chunk + window) * 8
                pixels = [load_address(emit, entries + 8 * m) + group_bytes for m in range(TILE_ROWS)]
                weights = first_row + tap * a.run * row_bytes
                with emit.loop(*run) as r:
                    row = [
                        emit.load(weights + r * row_bytes + v * emit.vector_bytes, emit.float_vector)
                        for v in range(vectors)
                    ]
                    for pixel, of_pixel in zip(pixels, sums, strict=True):
                        value = emit.load_splat(pixel + r * 4)
                        for total, vector in zip(of_pixel, row, strict=True):
                            total.set(emit.fma(value, vector, total.get()))  # eq. (1), (2)
            _add_or_store(emit, a, window, sums, is_first, is_last, biases, count, offsets, out, is_whole, mask)


def minimum_lanes(emit: Emitter, count: Value) -> Value:
    return minimum(emit, count, emit.constant(INT64, emit.lanes))


def _add_or_store(emit, a, window, sums, is_first, is_last, biases, count, offsets, out, is_whole, mask) -> None:
    """Add the sums of the blocks before to a tile; store it, in scratch memory until the last block."""
    vectors = len(biases)
    partial = a.partial_sums + window * (vectors * emit.vector_bytes)
    elements = [(m, v) for m in range(TILE_ROWS) for v in range(vectors)]
    addresses = [partial + (m * vectors + v) * emit.vector_bytes for m, v in elements]
    with emit.if_then(is_first == 0):
        for address, (m, v) in zip(addresses, elements, strict=True):
            sums[m][v].add(emit.load(address, emit.float_vector))
    with emit.if_then(is_last == 0):
        for address, (m, v) in zip(addresses, elements, strict=True):
            emit.store(sums[m][v].get(), address)
    with emit.if_then(is_last):
        for m in range(TILE_ROWS):
            with emit.if_then(window + m < count):
                target = out + emit.load(offsets + (window + m) * 8, INT64)
                values = [sums[m][v].get() + biases[v] for v in range(vectors)]  # eq. (17)
                for v in range(vectors - 1):
                    emit.store(values[v], target + v * emit.vector_bytes)
                last = target + (vectors - 1) * emit.vector_bytes
                with emit.if_then(is_whole):
                    emit.store(values[-1], last)
                with emit.if_then(is_whole == 0):
                    emit.masked_store(values[-1], last, mask)
