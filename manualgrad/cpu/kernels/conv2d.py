"""A convolution of images with channels last: (1) with (17), and (2), which is a convolution of the gradients.

    out_ijk = b_k + Σ_pqr x_(s1·i+p)(s2·j+q)r w_pqrk, or R of it                 (1), (17), (9)

The sum over r, a *run*, is over neighbouring floats of x. The registers hold a tile of the result: TILE_ROWS windows,
and some vectors of channels k, a *panel*. Each number of x is multiplied with the vectors of the weight that belong
to it, which lie one behind the other in the packed weight (``pack_panels.py``).

K, the taps and runs, is divided into blocks whose weights stay in the nearest cache, while all tiles of a chunk of
windows are computed. Sums of a block are added to those of the blocks before, in scratch memory: a sum of sums rounds
less than one long sum.

A tap whose pixels are outside the image for all windows of a tile can be left out. Windows of small images are in an
order that has those with the same taps one behind the other.

A task computes one part of the windows for one part of the panels.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import or_

from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import (
    TILE_ROWS,
    Tile,
    channel_mask,
    load_row,
    minimum,
    panel_sizes,
    panel_vectors,
)
from manualgrad.cpu.kernels.conv2d_windows import PLACE_ARGUMENTS, WINDOW_ARGUMENTS, fill_table, load_address
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel


@kernel(
    **WINDOW_ARGUMENTS,
    **PLACE_ARGUMENTS,
    table=POINTER,  # scratch memory of each task: num_taps + 1 rows of ``chunk`` addresses
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
    has_relu=BOOL,  # True stores R(z) in place of z
    skips_zeros=BOOL,  # True leaves out a tap whose pixels are outside the image for all windows of a tile
)
def conv2d(emit: Emitter, a: Arguments) -> None:
    """Compute this task's windows and panels."""
    panel_floats = emit.lanes * panel_vectors(emit)
    a.panels = (a.channels + (panel_floats - 1)) // panel_floats
    a.vectors = (a.channels + (emit.lanes - 1)) // emit.lanes
    a.rows_of_panel = a.num_taps * a.run + 1
    a.least = emit.splat(emit.select(a.has_relu == 1, emit.constant(FLOAT, 0), emit.constant(FLOAT, -math.inf)))
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
            for vectors, is_chosen in panel_sizes(emit, a.vectors - panel * panel_vectors(emit)):
                with emit.if_then(is_chosen):
                    _panel(emit, a, table, count, group, panel, vectors)


def _panel(emit: Emitter, a: Arguments, table: Value, count: Value, group: Value, panel: Value, vectors: int) -> None:
    """Compute all windows of a chunk for a panel of ``vectors``."""
    vectors_before = panel * panel_vectors(emit)
    bias = a.packed_weight + (group * a.vectors + vectors_before) * a.rows_of_panel * emit.vector_bytes
    group_bytes, row_bytes = group * a.run * 4, vectors * emit.vector_bytes
    with (
        emit.block_loop(a.num_taps, a.taps_per_block) as taps,
        emit.block_loop(a.run, a.run_per_block) as run,
    ):
        is_first, is_last = (taps[0] + run[0]) == 0, (taps[1] == a.num_taps) & (run[1] == a.run)
        with emit.loop(0, count, TILE_ROWS) as window:
            tile = Tile(emit, vectors)
            with emit.loop(*taps) as tap:
                entries, weights = table + (tap * a.chunk + window) * 8, bias + (tap * a.run + 1) * row_bytes
                addresses = [load_address(emit, entries + 8 * m) for m in range(TILE_ROWS)]
                pixels = [address + group_bytes for address in addresses]
                has_pixel = reduce(or_, [address != a.zeros for address in addresses])
                with emit.if_then(has_pixel | (a.skips_zeros == 0)):
                    for r, part in tile.terms(*run):
                        row = load_row(emit, weights + r * row_bytes, vectors)
                        factors = [emit.load_splat(pixel + r * 4) for pixel in pixels]
                        tile.add_products(part, factors, row)  # eq. (1), (2)
            tile.add_parts()
            partial = a.partial_sums + window * row_bytes
            with emit.if_then(is_first == 0):
                tile.add_from(partial)
            with emit.if_then(is_last == 0):
                tile.store(partial)
            with emit.if_then(is_last):
                offsets = table + (a.num_taps * a.chunk + window) * 8
                channel = vectors_before * emit.lanes
                out = a.out + (group * a.channels + channel) * 4
                _store(emit, tile, bias, offsets, count - window, out, a.channels - channel, a.least)


def _store(
    emit: Emitter, tile: Tile, bias: Value, offsets: Value, windows: Value, out: Value, channels: Value, least: Value
) -> None:
    """Store a tile in the result, at an offset for each window; ``windows`` and ``channels`` are those left.

    Numbers below ``least`` become ``least``, which is 0 or -inf."""
    biases, last = load_row(emit, bias, tile.vectors), tile.vectors - 1
    is_whole, mask = channels > tile.vectors * emit.lanes - 1, channel_mask(emit, channels - last * emit.lanes)
    for m in range(TILE_ROWS):
        with emit.if_then(windows > m):
            target = out + emit.load(offsets + m * 8, INT64)
            values = [total + bias for total, bias in zip(tile.row(m), biases, strict=True)]  # eq. (17)
            values = [emit.select(z < least, least, z) for z in values]  # eq. (9)
            for v in range(last):
                emit.store(values[v], target + v * emit.vector_bytes)
            with emit.if_then(is_whole):
                emit.store(values[last], target + last * emit.vector_bytes)
            with emit.if_then(is_whole == 0):
                emit.masked_store(values[last], target + last * emit.vector_bytes, mask)
