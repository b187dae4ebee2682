"""Matrices transposed: images (C, H·W) become (H·W, C), channels last, and back.

Blocks of 8×8 floats are transposed in registers. The last block of a row or column ends with it, and may copy some
floats a second time. A task transposes ``share`` strips, each of STRIP columns of one matrix: what it reads and
writes stays in the nearest cache.
"""

from __future__ import annotations

from llvmlite import ir

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, INT32, Value, constant
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv2d_tile import minimum
from manualgrad.cpu.signature import INT, POINTER, kernel

BLOCK, STRIP = 8, 64


@kernel(
    source=POINTER,  # (matrices, rows, columns), neither less than BLOCK
    target=POINTER,  # (matrices, columns, rows)
    matrices=INT,
    rows=INT,
    columns=INT,
    share=INT,  # strips per task
)
def transpose(emit: Emitter, a: Arguments) -> None:
    """Transpose this task's strips."""
    strips = (a.columns + (STRIP - 1)) // STRIP
    with emit.loop(*task_range(emit, a, a.matrices * strips)) as number:
        matrix, first = number // strips, number % strips * STRIP
        source, target = (address + matrix * a.rows * a.columns * 4 for address in (a.source, a.target))
        with (
            emit.loop(0, a.rows, BLOCK) as row_number,
            emit.loop(first, minimum(emit, first + STRIP, a.columns), BLOCK) as column_number,
        ):
            row = minimum(emit, row_number, a.rows - BLOCK)
            column = minimum(emit, column_number, a.columns - BLOCK)
            block = source + (row * a.columns + column) * 4
            transposed = target + (column * a.rows + row) * 4
            vectors = [emit.load(block + a.columns * (4 * n), ir.VectorType(FLOAT, BLOCK)) for n in range(BLOCK)]
            for n, vector in enumerate(_transposed(emit, vectors)):
                emit.store(vector, transposed + a.rows * (4 * n))


def _transposed(emit: Emitter, vectors: list[Value]) -> list[Value]:
    """Exchange the bits of a float's two numbers, of its vector and its lane, one after the other."""
    for bit in (4, 2, 1):
        for low in (n for n in range(BLOCK) if not n & bit):
            pair = vectors[low], vectors[low | bit]
            lanes = [lane if not lane & bit else BLOCK + lane - bit for lane in range(BLOCK)]
            vectors[low] = _shuffle(emit, *pair, lanes)
            vectors[low | bit] = _shuffle(emit, *pair, [lane + bit for lane in lanes])
    return vectors


def _shuffle(emit: Emitter, a: Value, b: Value, lanes: list[int]) -> Value:
    """Return a vector of lanes of ``a``, and of ``b``, whose numbers begin at BLOCK."""
    mask = constant(ir.VectorType(INT32, BLOCK), lanes)
    return Value(emit.builder, emit.builder.shuffle_vector(a.raw, b.raw, mask))
