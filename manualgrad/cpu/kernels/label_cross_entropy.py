"""Cross-entropy of labels and its gradient, in one pass each, without a matrix of targets.

    J^b       = −y (z_l − max z − log Σ_k e^{z_k − max z}) for the label l                    (14)
    ∂J^b/∂z_j = g (S_j y − y δ_jl), S_j = e^{z_j − max z} / Σ_k e^{z_k − max z}               (15)

y is the target at the label: 1, or 1/B of (13), and 0 if the label is ignored. Forward keeps max z and the sum of
each row for backward, which computes the powers again: no matrix but the gradient is written. A task computes
``share`` rows.
"""

from __future__ import annotations

from manualgrad.cpu.ir.exponential import exp_nonpositive
from manualgrad.cpu.ir.tiles import row_vectors, task_range
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.one_hot_targets import count_labels
from manualgrad.cpu.kernels.softmax_rows import row_max, row_sum
from manualgrad.cpu.signature import BOOL, FLOAT32, INT, POINTER, kernel


@kernel(
    logits=POINTER,  # (rows, classes)
    labels=POINTER,  # (rows) int64
    losses=POINTER,  # (rows)
    row_stats=POINTER,  # (rows, 2): the maximum and the sum of the powers
    counts=POINTER,  # two int64: the rows that are not ignored, and those of them whose label is no class
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
    ignore_index=INT,
    divides_by_count=BOOL,  # True if losses are divided by the number of rows that are not ignored
)
def label_losses(emit: Emitter, a: Arguments) -> None:
    """Compute the losses of this task's rows; task 0 also stores the counts."""
    mean_weight = count_labels(emit, a)
    weight = emit.select(a.divides_by_count == 1, mean_weight, emit.constant(FLOAT, 1))
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        logits = a.logits + row * a.classes * 4
        largest = row_max(emit, logits, a.classes)
        exp_sum = row_sum(emit, logits, a.classes, largest)
        label = emit.load(a.labels + row * 8, INT64)
        log_softmax = emit.load(logits + _index(emit, label, a.classes) * 4, FLOAT) - largest - emit.log(exp_sum)
        loss = emit.constant(FLOAT, 0) - weight * log_softmax
        loss = emit.select(label == a.ignore_index, emit.constant(FLOAT, 0), loss)
        emit.store(loss, a.losses + row * 4)  # eq. (14)
        emit.store(largest, a.row_stats + row * 8)
        emit.store(exp_sum, a.row_stats + row * 8 + 4)


@kernel(
    grad_out=POINTER,  # (rows), of any stride
    grad_out_stride=INT,  # in floats; 0 if one number serves all rows
    logits=POINTER,  # (rows, classes)
    labels=POINTER,  # (rows) int64, all of them classes or ignore_index
    row_stats=POINTER,  # (rows, 2), from label_losses
    grad_logits=POINTER,  # (rows, classes)
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
    ignore_index=INT,
    weight=FLOAT32,  # y of rows that are not ignored
)
def label_losses_grad(emit: Emitter, a: Arguments) -> None:
    """Compute the gradient of this task's rows."""
    zero = emit.constant(FLOAT, 0)
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        logits, grad_logits = (address + row * a.classes * 4 for address in (a.logits, a.grad_logits))
        largest, exp_sum = (emit.load(a.row_stats + row * 8 + offset, FLOAT) for offset in (0, 4))
        label = emit.load(a.labels + row * 8, INT64)
        is_ignored = label == a.ignore_index
        grad_out = emit.select(is_ignored, zero, emit.load(a.grad_out + row * a.grad_out_stride * 4, FLOAT))
        weight = emit.select(is_ignored, zero, a.weight)
        scale, shift = emit.splat(grad_out * (weight / exp_sum)), emit.splat(largest)
        for n, mask, _ in row_vectors(emit, a.classes):
            exp = exp_nonpositive(emit, emit.masked_load(logits + n * 4, mask, 0) - shift)
            emit.masked_store(exp * scale, grad_logits + n * 4, mask)  # eq. (15), j is not the label
        index = _index(emit, label, a.classes)
        softmax = exp_nonpositive(emit, emit.load(logits + index * 4, FLOAT) - largest) / exp_sum
        emit.store(grad_out * (softmax * weight - weight), grad_logits + index * 4)  # eq. (15), j is the label


def _index(emit: Emitter, label: Value, classes: Value) -> Value:
    """Return the label, or 0 if it is no class: then nothing depends on the number that is read there."""
    return emit.select(label.ult(classes), label, emit.constant(INT64, 0))
