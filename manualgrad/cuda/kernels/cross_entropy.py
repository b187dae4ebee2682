"""Softmax cross-entropy, equations (13) to (15), for target probabilities y (A, B, classes)."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.exponential import exp_nonpositive, log_normal
from manualgrad.cuda.kernels.rows import classes_from, load_tile, program_rows, row_stats


@triton.jit
def cross_entropy_forward(
    losses, partial_sums, z, y, ROWS, B, CLASSES, za, zb, zc, ya, yb, yc,
    SUMMED: tl.constexpr, ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """J of each row, or the sum of the program's rows. A class with y = 0 contributes 0, even if its S is 0."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    z_at, y_at = (row // B) * za + (row % B) * zb, (row // B) * ya + (row % B) * yb
    largest, total = row_stats(z, z_at, zc, row_exists, CLASSES, ROW_BLOCK, BLOCK, WIDE)
    log_total = log_normal(total)
    loss = tl.zeros([ROW_BLOCK], tl.float32)
    for start in range(0, CLASSES, BLOCK):
        c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
        z_c = load_tile(z, z_at, zc, row_exists, c, class_exists, 0.0)
        y_c = load_tile(y, y_at, yc, row_exists, c, class_exists, 0.0)
        log_s = (z_c - largest[:, None]) - log_total[:, None]  # eq. (11)
        loss += tl.sum(tl.where(y_c == 0, 0.0, -y_c * log_s), 1)  # eq. (14)
    if SUMMED:
        tl.store(partial_sums + tl.program_id(0), tl.sum(tl.where(row_exists, loss, 0.0), 0))
    else:
        tl.store(losses + row, loss.to(losses.dtype.element_ty), mask=row_exists)


@triton.jit
def cross_entropy_backward(
    grad_z, g, z, y, ROWS, B, CLASSES, oa, ob, oc, ga, gb, za, zb, zc, ya, yb, yc,
    ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """g (S Σ_k y_k − y) of each row, with g = 0 for a row with y = 0."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    z_at, y_at = (row // B) * za + (row % B) * zb, (row // B) * ya + (row % B) * yb
    out_at = (row // B) * oa + (row % B) * ob
    largest, total = row_stats(z, z_at, zc, row_exists, CLASSES, ROW_BLOCK, BLOCK, WIDE)
    sum_y, num_counted = tl.zeros([ROW_BLOCK], tl.float32), tl.zeros([ROW_BLOCK], tl.int32)
    for start in range(0, CLASSES, BLOCK):
        c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
        y_c = load_tile(y, y_at, yc, row_exists, c, class_exists, 0.0)
        sum_y += tl.sum(y_c, 1)
        num_counted += tl.sum((y_c != 0).to(tl.int32), 1)
    g_row = tl.load(g + (row // B) * ga + (row % B) * gb, mask=row_exists, other=0.0).to(tl.float32)
    g_row = tl.where(num_counted > 0, g_row, 0.0)
    inverse = tl.div_rn(1.0, total)
    for start in range(0, CLASSES, BLOCK):
        c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
        z_c = load_tile(z, z_at, zc, row_exists, c, class_exists, 0.0)
        y_c = load_tile(y, y_at, yc, row_exists, c, class_exists, 0.0)
        s = exp_nonpositive(z_c - largest[:, None]) * inverse[:, None]
        grad = g_row[:, None] * (s * sum_y[:, None] - y_c)  # eq. (15)
        mask = row_exists[:, None] & class_exists[None, :]
        tl.store(grad_z + (out_at[:, None] + (c * oc)[None, :]), grad.to(grad_z.dtype.element_ty), mask=mask)


@triton.jit
def add_partial_sums(loss, factor, partial_sums, PROGRAMS, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the programs' losses. With MEAN divided by the sum of their weights, and 1 / that sum as factor.

    ``partial_sums`` has the losses, then the weights. One program adds them, in the same order in every call."""
    total, weight = 0.0, 0.0
    for start in range(0, PROGRAMS, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(partial_sums + at, mask=at < PROGRAMS, other=0.0), 0)
        if MEAN:
            weight += tl.sum(tl.load(partial_sums + PROGRAMS + at, mask=at < PROGRAMS, other=0.0), 0)
    store_loss(loss, factor, total, weight, MEAN)


@triton.jit
def store_loss(loss, factor, total, weight, MEAN: tl.constexpr):
    """Store the loss and, with MEAN, the factor 1/B of equation (13); the mean over no examples is NaN."""
    if MEAN:
        inverse = tl.div_rn(1.0, weight)
        tl.store(factor, inverse)
        total = tl.where(weight == 0, float("nan"), tl.div_rn(total, weight))  # eq. (13)
    tl.store(loss, total.to(loss.dtype.element_ty))
