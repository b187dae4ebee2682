"""Matrices transposed: images (C, H·W) become (H·W, C), channels last, and back.

Blocks of 8×8 floats are transposed in registers. The last block of a row or column ends with it, and may copy some
floats a second time. A task transposes ``share`` strips, each of STRIP columns of one matrix: what it reads and
writes stays in the nearest cache.
"""

from __future__ import annotations

from llvmlite import ir

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.transposition import transposed
from manualgrad.cpu.ir.values import FLOAT
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
            rows = target + (column * a.rows + row) * 4
            vectors = [emit.load(block + a.columns * (4 * n), ir.VectorType(FLOAT, BLOCK)) for n in range(BLOCK)]
            for n, vector in enumerate(transposed(emit, vectors)):
                emit.store(vector, rows + a.rows * (4 * n))
