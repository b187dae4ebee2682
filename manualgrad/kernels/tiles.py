"""Work cut into tiles that the registers hold."""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.kernels.vectors import Emitter, Value


def tiles(emit: Emitter, start: Value, end: Value, most: int) -> Iterator[tuple[Value, int]]:
    """Covers the numbers from ``start`` to ``end`` by ``most`` at a time and then by 1: (first, how many)."""
    whole = emit.select(start < end, end - (end - start) % most, start)
    for size, first, after in ((most, start, whole), (1, whole, end)):
        with emit.loop(first, after, size) as at:
            yield at, size
