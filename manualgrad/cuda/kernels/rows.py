"""Rows of logits, (A, B, classes) with a stride for each dimension: where a row begins, its maximum and its sum.

A program computes ROW_BLOCK rows and reads BLOCK classes at a time.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.exponential import exp_nonpositive


@triton.jit
def program_rows(ROWS, ROW_BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """The rows of this program, and a mask of those that exist."""
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    row = program * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    return row, row < ROWS


@triton.jit
def classes_from(start, CLASSES, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """BLOCK classes from ``start``, and a mask of those that exist."""
    c = start + tl.arange(0, BLOCK)
    return c.to(tl.int64) if WIDE else c, c < CLASSES


@triton.jit
def load_tile(x, at, sc, row_exists, c, class_exists, padding):
    """Numbers (rows, classes) in float32; ``padding`` where there are none."""
    mask = row_exists[:, None] & class_exists[None, :]
    return tl.load(x + (at[:, None] + (c * sc)[None, :]), mask=mask, other=padding).to(tl.float32)


@triton.jit
def row_stats(z, at, sc, row_exists, CLASSES, ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """max_k z_k and Σ_k e^(z_k − max z) of each row: a sum is rescaled where a later class is larger."""
    largest = tl.full([ROW_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([ROW_BLOCK], tl.float32)
    for start in range(0, CLASSES, BLOCK):
        c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
        values = load_tile(z, at, sc, row_exists, c, class_exists, float("-inf"))
        new = tl.maximum(largest, tl.max(values, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # -inf - -inf would be NaN
        total = total * exp_nonpositive(largest - shift) + tl.sum(exp_nonpositive(values - shift[:, None]), 1)
        largest = new
    return largest, total
