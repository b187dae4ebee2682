"""Weight gradient of a convolution of images with channels last, (3), and that of its bias.

    ∂J/∂w_pqrk = Σ_ij g_ijk x_(s1·i+p)(s2·j+q)r                                   (3)
    ∂J/∂b_k    = Σ_ij g_ijk                                                       (17)

The registers hold a tile of the result: TILE_ROWS numbers r of a run of x, and some vectors of channels k, a *panel*.
The sum over windows is taken in blocks of up to BLOCK_WINDOWS, whose sums are added: a sum of sums rounds less than
one long sum. Windows whose pixel is outside the image are left out, or have zeros. With AVX2, the gradients of a
panel are copied to scratch memory for each chunk, where they lie one behind the other. With AVX-512, whose step has
twice as many products for each gradient, that was measured to be slower: they are copied only where channels fill no
whole vectors.

A *unit* is one tile: of a group, a panel, a tap, and TILE_ROWS numbers of a run. A task computes ``share`` units for
all windows, so the result does not depend on the number of tasks. The last tile of a run ends with the run, and may
compute numbers of the tile before a second time; if only HALF_ROWS numbers or fewer are left, it has HALF_ROWS. If a
run has fewer numbers than its tile, the tile has the floats behind it too, which are not used; x and ``zeros`` must
have TILE_ROWS floats more than their pixels. The sums are stored in the weight gradient by ``unpack_panels``. The
task that has the first unit of a panel computes the panel's bias gradient, while its gradients are in the cache.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range, tiles
from manualgrad.cpu.ir.values import BIT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import (
    HALF_ROWS,
    TILE_ROWS,
    Tile,
    channel_mask,
    load_row,
    minimum,
    panel_sizes,
    panel_vectors,
    tile_of_run,
)
from manualgrad.cpu.kernels.conv2d_windows import ENTRY_BYTES, WINDOW_ARGUMENTS, fill_lists, load_address
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel

BLOCK_WINDOWS = 128
BIAS_PARTS = 4


@kernel(
    **WINDOW_ARGUMENTS,
    lists=POINTER,  # scratch memory of each task: (num_taps, chunk) entries, and a count for each tap
    grad_out=POINTER,  # (windows, groups * channels)
    partial_sums=POINTER,  # (units, TILE_ROWS, a panel's floats)
    grad_bias=POINTER,  # (groups * channels)
    has_bias=BOOL,  # False does not write grad_bias
    packed_grads=POINTER,  # scratch memory of each task: (chunk, a panel's floats)
    lists_zeros=BOOL,  # True if pixels outside the image are multiplied as zeros, False if they are left out
    units=INT,
    share=INT,  # units per task
    groups=INT,
    channels=INT,  # of grad_out, in a group
    run=INT,  # floats of x for each tap, in a group
)
def conv2d_grad_weight(emit: Emitter, a: Arguments) -> None:
    """Compute this task's units."""
    largest = panel_vectors(emit)
    a.tiles = (a.run + (TILE_ROWS - 1)) // TILE_ROWS
    a.vectors = (a.channels + (emit.lanes - 1)) // emit.lanes
    a.panels = (a.vectors + (largest - 1)) // largest
    a.units_of_panel = a.num_taps * a.tiles
    a.lists = a.lists + a.task * a.num_taps * (a.chunk * ENTRY_BYTES + 8)
    a.counts = a.lists + a.num_taps * a.chunk * ENTRY_BYTES
    a.packed_grads = a.packed_grads + a.task * a.chunk * (largest * emit.vector_bytes)
    first, stop = task_range(emit, a, a.units)
    # without images there is one chunk of no windows, which stores zeros
    with emit.loop(0, emit.select(a.windows > 0, a.windows, emit.constant(INT64, 1)), a.chunk) as start:
        count = minimum(emit, a.windows - start, a.chunk)
        fill_lists(emit, a, (start, start + count))
        with emit.loop(first // a.units_of_panel, (stop + a.units_of_panel - 1) // a.units_of_panel) as number:
            group, panel = number // a.panels, number % a.panels
            first_unit = number * a.units_of_panel
            units = (
                emit.select(first > first_unit, first, first_unit),
                minimum(emit, stop, first_unit + a.units_of_panel),
            )
            for vectors, is_chosen in panel_sizes(emit, a.vectors - panel * largest):
                with emit.if_then(is_chosen):
                    channel = panel * (largest * emit.lanes)
                    grads = _grads_of_panel(emit, a, start, count, group, channel, vectors)
                    with emit.if_then((a.has_bias == 1) & (units[0] == first_unit)):
                        _add_bias(emit, a, start, count, group * a.channels + channel, channel, grads)
                    with emit.loop(*units) as unit:
                        in_panel = unit % a.units_of_panel
                        tap, (r, is_half) = in_panel // a.tiles, tile_of_run(emit, in_panel % a.tiles, a.run)
                        partial = a.partial_sums + unit * (TILE_ROWS * largest * emit.vector_bytes)
                        offset = (group * a.run + r) * 4
                        for rows, has_rows in ((TILE_ROWS, is_half == 0), (HALF_ROWS, is_half)):
                            with emit.if_then(has_rows):
                                _add_unit(emit, a, start, tap, offset, grads, partial, rows)


class PanelGrads:
    """Gradients of a panel's channels, ``vectors`` for each window of a chunk, whose first is at ``address``."""

    def __init__(self, address: Value, window_bytes: Value, vectors: int) -> None:
        self.address, self.window_bytes, self.vectors = address, window_bytes, vectors


def _grads_of_panel(
    emit: Emitter, a: Arguments, start: Value, count: Value, group: Value, channel: Value, vectors: int
) -> PanelGrads:
    """Return the gradients of the panel that begins with ``channel``, for ``count`` windows from ``start``.

    With AVX-512 they are those in ``grad_out`` if all vectors are whole. Otherwise they are copied to scratch memory,
    and zeros fill up the last vector."""
    pixel_bytes, row_bytes = a.groups * a.channels * 4, emit.constant(INT64, vectors * emit.vector_bytes)
    source = a.grad_out + start * pixel_bytes + (group * a.channels + channel) * 4
    is_copied = a.channels % emit.lanes != 0 if emit.lanes == 16 else emit.constant(BIT, 1)
    with emit.if_then(is_copied), emit.loop(0, count) as window:
        mask = channel_mask(emit, a.channels - channel - (vectors - 1) * emit.lanes)
        for v in range(vectors):
            address = source + window * pixel_bytes + v * emit.vector_bytes
            vector = emit.masked_load(address, mask if v == vectors - 1 else None, 0)
            emit.store(vector, a.packed_grads + window * row_bytes + v * emit.vector_bytes)
    window_bytes = emit.select(is_copied, row_bytes, pixel_bytes)
    return PanelGrads(emit.select(is_copied, a.packed_grads, source), window_bytes, vectors)


def _add_bias(
    emit: Emitter, a: Arguments, start: Value, count: Value, place: Value, channel: Value, grads: PanelGrads
) -> None:
    """Add the gradients of a chunk, which begins with window ``start``, to the bias gradient from number ``place``.

    They are added in blocks, and each block in BIAS_PARTS, whose sums are added: a sum of sums rounds less."""
    zero, last = emit.constant(emit.float_vector, 0), grads.vectors - 1
    mask = channel_mask(emit, a.channels - channel - last * emit.lanes)
    totals = [emit.variable(zero) for _ in range(grads.vectors)]
    with emit.block_loop(count, BLOCK_WINDOWS) as block:
        sums = [[emit.variable(zero) for _ in range(grads.vectors)] for _ in range(BIAS_PARTS)]
        for first, windows in tiles(emit, *block, BIAS_PARTS):
            for part in range(windows):
                row = load_row(emit, grads.address + (first + part) * grads.window_bytes, grads.vectors)
                for total, vector in zip(sums[part], row, strict=True):
                    total.add(vector)  # eq. (17)
        for total, *parts in zip(totals, *sums, strict=True):
            total.add((parts[0].get() + parts[1].get()) + (parts[2].get() + parts[3].get()))
    for v, total in enumerate(totals):
        address, chosen = a.grad_bias + place * 4 + v * emit.vector_bytes, mask if v == last else None
        with emit.if_then(start > 0):
            total.add(emit.masked_load(address, chosen, 0))
        emit.masked_store(total.get(), address, chosen)


def _add_unit(
    emit: Emitter, a: Arguments, start: Value, tap: Value, offset: Value, grads: PanelGrads, partial: Value, rows: int
) -> None:
    """Add the sums of a chunk, which begins with window ``start``, to the unit at ``partial``.

    Its ``rows`` numbers of the run are ``offset`` bytes behind the addresses of the pixels."""
    count = emit.load(a.counts + tap * 8, INT64)
    blocks = (count + (BLOCK_WINDOWS - 1)) // BLOCK_WINDOWS
    blocks = emit.select(blocks > 0, blocks, emit.constant(INT64, 1))  # one without terms stores zeros
    size = (count + blocks - 1) // blocks
    with emit.loop(0, blocks) as block:
        tile = Tile(emit, grads.vectors, rows)
        for n, part in tile.terms(block * size, minimum(emit, block * size + size, count)):
            entry = a.lists + (tap * a.chunk + n) * ENTRY_BYTES
            pixel = load_address(emit, entry) + offset
            window = emit.load(entry + 8, INT64)
            row = load_row(emit, grads.address + window * grads.window_bytes, grads.vectors)
            tile.add_products(part, [emit.load_splat(pixel + 4 * m) for m in range(rows)], row)  # eq. (3)
        tile.add_parts()
        with emit.if_then(start + block > 0):
            tile.add_from(partial)
        tile.store(partial)
