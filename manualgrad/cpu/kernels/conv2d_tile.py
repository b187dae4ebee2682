"""Tiles of the result of a convolution that the registers hold, and panels of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manualgrad.cpu.ir.tiles import tiles
from manualgrad.cpu.ir.values import INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

TILE_ROWS = 6  # windows, or numbers of a run, of a tile
HALF_ROWS = TILE_ROWS // 2


def panel_vectors(emit: Emitter) -> int:
    """Vectors of channels of a tile: with TILE_ROWS rows 12 of 16 registers, or 24 of 32."""
    return 4 if emit.lanes == 16 else 2


def panel_sizes(emit: Emitter, vectors_left: Value) -> Iterator[tuple[int, Value]]:
    """Numbers of vectors that a panel can have, and the condition for each."""
    largest = panel_vectors(emit)
    for vectors in range(1, largest + 1):
        yield vectors, (vectors_left > largest - 1 if vectors == largest else vectors_left == vectors)


def minimum(emit: Emitter, m: Value, n: Value | int) -> Value:
    n = n if isinstance(n, Value) else emit.constant(INT64, n)
    return emit.select(m < n, m, n)


def channel_mask(emit: Emitter, channels_left: Value) -> Value:
    """Return the mask of a vector's first ``channels_left`` lanes, all of them if it has fewer."""
    return emit.first_lanes(minimum(emit, channels_left, emit.lanes))


def tile_of_run(emit: Emitter, number: Value, run: Value) -> tuple[Value, Value]:
    """First number of a run that its tile ``number`` has, and True if the tile has HALF_ROWS.

    The last tile ends with the run, and has half of the rows if no more numbers are left."""
    first = number * TILE_ROWS
    is_half = run - first < HALF_ROWS + 1
    rows = emit.select(is_half, emit.constant(INT64, HALF_ROWS), emit.constant(INT64, TILE_ROWS))
    return minimum(emit, first, emit.select(run > rows, run - rows, emit.constant(INT64, 0))), is_half


class Tile:
    """Sums of ``rows`` × ``vectors`` vectors, 0 at first.

    A tile of one vector has each sum in two parts, since an addition waits for the one before."""

    def __init__(self, emit: Emitter, vectors: int, rows: int = TILE_ROWS) -> None:
        self.emit, self.vectors, self.parts = emit, vectors, 2 if vectors == 1 else 1
        zero = emit.constant(emit.float_vector, 0)
        self._sums = [[emit.variable(zero) for _ in range(rows * vectors)] for _ in range(self.parts)]

    def terms(self, start: Value, stop: Value) -> Iterator[tuple[Value, int]]:
        """Loop over ``range(start, stop)``: the number of each term, and the part of the sums that it is added to."""
        for first, count in tiles(self.emit, start, stop, self.parts):
            for part in range(count):
                yield first + part, part

    def add_products(self, part: int, factors: Sequence[Value], row: Sequence[Value]) -> None:
        """Add the products of each row's factor with the vectors of ``row``."""
        for m, factor in enumerate(factors):
            for v, vector in enumerate(row):
                total = self._sums[part][m * self.vectors + v]
                total.set(self.emit.fma(factor, vector, total.get()))

    def add_parts(self) -> None:
        """Add the parts of each sum. Call once, after the last product."""
        for part in self._sums[1:]:
            for total, other in zip(self._sums[0], part, strict=True):
                total.add(other.get())

    def row(self, m: int) -> list[Value]:
        return [total.get() for total in self._sums[0][m * self.vectors : (m + 1) * self.vectors]]

    def add_from(self, address: Value) -> None:
        """Add the sums that :meth:`store` has stored at ``address``."""
        for n, total in enumerate(self._sums[0]):
            total.add(self.emit.load(address + n * self.emit.vector_bytes, self.emit.float_vector))

    def store(self, address: Value) -> None:
        for n, total in enumerate(self._sums[0]):
            self.emit.store(total.get(), address + n * self.emit.vector_bytes)


def load_row(emit: Emitter, address: Value, vectors: int) -> list[Value]:
    return [emit.load(address + v * emit.vector_bytes, emit.float_vector) for v in range(vectors)]
