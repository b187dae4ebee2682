"""Work cut into shares for slots, and into tiles that the registers hold."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from manualgrad.cpu.ir.values import Value
from manualgrad.cpu.ir.vectors import Emitter


def share(emit: Emitter, a: SimpleNamespace) -> tuple[Value, Value]:
    """The first row of this slot, and the first after it: of ``a.rows``, each slot has ``a.share``."""
    start = a.slot * a.share
    return start, emit.select(start + a.share < a.rows, start + a.share, a.rows)


def tiles(emit: Emitter, start: Value, end: Value, most: int) -> Iterator[tuple[Value, int]]:
    """Covers the numbers from ``start`` to ``end`` by ``most`` at a time and then by 1: (first, how many)."""
    whole = emit.select(start < end, end - (end - start) % most, start)
    for size, first, after in ((most, start, whole), (1, whole, end)):
        with emit.loop(first, after, size) as at:
            yield at, size


def clear(emit: Emitter, address: Value, floats: Value) -> None:
    """Zeros, a whole number of vectors of them."""
    with emit.loop(0, floats, emit.lanes) as n:
        emit.store(emit.number(emit.floats, 0), address + n * 4)
