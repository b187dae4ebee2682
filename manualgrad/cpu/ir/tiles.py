"""Ranges of work: those of a task, and tiles of a size that registers hold."""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite import ir

from manualgrad.cpu.ir.values import FLOAT, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter


def task_range(emit: Emitter, a: Arguments, count: Value) -> tuple[Value, Value]:
    """Start and stop of this task's part of ``range(count)``, of which each task has ``a.share`` numbers."""
    start = a.task * a.share
    return start, emit.select(start + a.share < count, start + a.share, count)


def tiles(emit: Emitter, start: Value, stop: Value, size: int) -> Iterator[tuple[Value, int]]:
    """Cover ``range(start, stop)`` with tiles of ``size`` and then of 1: the first number and the size of each."""
    full = emit.select(start < stop, stop - (stop - start) % size, start)
    for tile, first, end in ((size, start, full), (1, full, stop)):
        with emit.loop(first, end, tile) as n:
            yield n, tile


def float_tiles(emit: Emitter, start: Value, stop: Value) -> Iterator[tuple[Value, ir.Type]]:
    """Cover ``range(start, stop)`` with vectors and then single floats: the first number and the type of each."""
    for n, size in tiles(emit, start, stop, emit.lanes):
        yield n, emit.float_vector if size == emit.lanes else FLOAT


ACCUMULATORS = 4  # vectors in a step of row_vectors


def row_vectors(emit: Emitter, numel: Value) -> Iterator[tuple[Value, Value | None, int]]:
    """Cover a row of ``numel`` floats with vectors: the first float of each, its mask, and its accumulator.

    The mask is None for whole vectors. A sum or maximum with a variable for each of the ``ACCUMULATORS`` does not
    wait for the vector before."""
    full = numel - numel % emit.lanes
    unrolled = numel - numel % (ACCUMULATORS * emit.lanes)
    with emit.loop(0, unrolled, ACCUMULATORS * emit.lanes) as n:
        for m in range(ACCUMULATORS):
            yield n + m * emit.lanes, None, m
    with emit.loop(unrolled, full, emit.lanes) as n:
        yield n, None, 0
    with emit.if_then(full < numel):
        yield full, emit.first_lanes(numel - full), 0


def clear(emit: Emitter, address: Value, numel: Value) -> None:
    """Fill ``numel`` floats with zeros; ``numel`` must be a multiple of the lanes."""
    with emit.loop(0, numel, emit.lanes) as n:
        emit.store(emit.constant(emit.float_vector, 0), address + n * 4)
