"""Softmax cross-entropy, equations (13) to (15), of class indices, without a matrix of targets.

With the class weights w and the label smoothing ε the targets of a row with the label l are

    y_c = (1 − ε) w_l δ_cl + (ε / C) w_c,

so one logit and a sum over the classes are enough for J, and y_c is computed where it is needed. A row whose label is
``ignore_index`` has y = 0; a row whose label is no class has the loss NaN, and NaN for its gradient.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.cross_entropy import store_loss
from manualgrad.cuda.kernels.exponential import exp_nonpositive, log_normal
from manualgrad.cuda.kernels.rows import classes_from, load_tile, program_rows, row_stats


@triton.jit
def _smoothed_sums(z, at, sc, weight, reference, row_exists, CLASSES, ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
                   WIDE: tl.constexpr):  # fmt: skip
    """Σ_c w_c and Σ_c w_c (z_c − reference), in which a class with the weight 0 contributes 0."""
    weights, sums = tl.zeros([ROW_BLOCK], tl.float32), tl.zeros([ROW_BLOCK], tl.float32)
    for start in range(0, CLASSES, BLOCK):
        c, class_exists = classes_from(start, CLASSES, BLOCK, WIDE)
        z_c = load_tile(z, at, sc, row_exists, c, class_exists, 0.0)
        if weight is None:
            w_c = tl.where(class_exists, 1.0, 0.0)
        else:
            w_c = tl.load(weight + c, mask=class_exists, other=0.0).to(tl.float32)
        weights += tl.sum(w_c, 0)
        sums += tl.sum(tl.where(w_c[None, :] == 0, 0.0, w_c[None, :] * (z_c - reference[:, None])), 1)
    return weights, sums


@triton.jit
def label_cross_entropy_forward(
    losses, factor, partial_sums, stats, z, labels, weight, ROWS, B, CLASSES, za, zb, zc, la, lb, ignore_index,
    smoothing, SMOOTHED: tl.constexpr, REDUCTION: tl.constexpr, ONE_PROGRAM: tl.constexpr,
    ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """J of each row (REDUCTION "none"), or the sum of the program's rows and of their weights.

    ``stats`` has three numbers of each row for backward: max z, 1 / Σ_k e^(z_k − max z) and Σ_k y_k."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    at = (row // B) * za + (row % B) * zb
    label = tl.load(labels + (row // B) * la + (row % B) * lb, mask=row_exists, other=0).to(tl.int64)
    is_counted = row_exists & (label != ignore_index)
    is_class = is_counted & (label >= 0) & (label < CLASSES)
    at_label = tl.load(z + at + tl.where(is_class, label, 0) * zc, mask=is_class, other=0.0).to(tl.float32)
    if weight is None:
        w = tl.where(is_class, 1.0, 0.0)
    else:
        w = tl.load(weight + label, mask=is_class, other=0.0).to(tl.float32)
    largest, total = row_stats(z, at, zc, row_exists, CLASSES, ROW_BLOCK, BLOCK, WIDE)
    log_total = log_normal(total)
    y_label = w * (1.0 - smoothing) if SMOOTHED else w
    loss = tl.where(y_label == 0, 0.0, y_label * (log_total + (largest - at_label)))  # eq. (14)
    sum_y = y_label
    if SMOOTHED:
        reference = tl.where(tl.abs(at_label) < float("inf"), at_label, 0.0)
        weights, sums = _smoothed_sums(z, at, zc, weight, reference, row_exists, CLASSES, ROW_BLOCK, BLOCK, WIDE)
        share = smoothing / CLASSES
        loss += share * (weights * (log_total + (largest - reference)) - sums)  # eq. (14)
        sum_y += share * weights
    nan = float("nan")
    loss = tl.where(is_class, loss, tl.where(is_counted, nan, 0.0))
    sum_y = tl.where(is_class, sum_y, tl.where(is_counted, nan, 0.0))
    tl.store(stats + row, largest, mask=row_exists)
    tl.store(stats + ROWS + row, tl.div_rn(1.0, total), mask=row_exists)
    tl.store(stats + ROWS + ROWS + row, sum_y, mask=row_exists)
    if REDUCTION == "none":
        tl.store(losses + row, loss.to(losses.dtype.element_ty), mask=row_exists)
    elif ONE_PROGRAM:
        store_loss(losses, factor, tl.sum(loss, 0), tl.sum(w, 0), REDUCTION == "mean")
    else:
        tl.store(partial_sums + tl.program_id(0), tl.sum(loss, 0))
        tl.store(partial_sums + tl.num_programs(0) + tl.program_id(0), tl.sum(w, 0))


@triton.jit
def label_cross_entropy_backward(
    grad_z, g, z, labels, weight, stats, factor, ROWS, B, CLASSES, oa, ob, oc, ga, gb, za, zb, zc, la, lb,
    ignore_index, smoothing, SMOOTHED: tl.constexpr, ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """g · factor · (S Σ_k y_k − y), with g = 0 for a row with y = 0. A program has a part of the classes."""
    row, row_exists = program_rows(ROWS, ROW_BLOCK, WIDE)
    c, class_exists = classes_from(tl.program_id(1) * BLOCK, CLASSES, BLOCK, WIDE)
    label = tl.load(labels + (row // B) * la + (row % B) * lb, mask=row_exists, other=0).to(tl.int64)
    is_class = row_exists & (label != ignore_index) & (label >= 0) & (label < CLASSES)
    largest = tl.load(stats + row, mask=row_exists, other=0.0)
    inverse = tl.load(stats + ROWS + row, mask=row_exists, other=0.0)
    sum_y = tl.load(stats + ROWS + ROWS + row, mask=row_exists, other=0.0)
    z_c = load_tile(z, (row // B) * za + (row % B) * zb, zc, row_exists, c, class_exists, 0.0)
    s = exp_nonpositive(z_c - largest[:, None]) * inverse[:, None]
    if weight is None:
        w = tl.where(is_class, 1.0, 0.0)
    else:
        w = tl.load(weight + label, mask=is_class, other=0.0).to(tl.float32)
    y_label = w * (1.0 - smoothing) if SMOOTHED else w
    y = tl.where(c[None, :] == label[:, None], y_label[:, None], 0.0)
    if SMOOTHED:
        share = smoothing / CLASSES
        if weight is None:
            y += share
        else:
            y += share * tl.load(weight + c, mask=class_exists, other=0.0).to(tl.float32)[None, :]
    g_row = tl.load(g + (row // B) * ga + (row % B) * gb, mask=row_exists, other=0.0).to(tl.float32)
    is_zero = (label == ignore_index) | (sum_y == 0)
    if factor is not None:
        one_over_b = tl.load(factor + tl.zeros([ROW_BLOCK], tl.int32))
        g_row *= one_over_b  # eq. (13)
        is_zero = (label == ignore_index) | ((sum_y == 0) & (tl.abs(one_over_b) < float("inf")))
    grad = tl.where(is_zero, 0.0, g_row)[:, None] * (s * sum_y[:, None] - y)  # eq. (15)
    out_at = (row // B) * oa + (row % B) * ob
    mask = row_exists[:, None] & class_exists[None, :]
    tl.store(grad_z + (out_at[:, None] + (c * oc)[None, :]), grad.to(grad_z.dtype.element_ty), mask=mask)
