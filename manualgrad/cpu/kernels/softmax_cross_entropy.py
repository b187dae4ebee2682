"""Softmax, cross-entropy and its gradient of a few rows of logits, in two kernels.

    S_i       = e^{z_i − max z} / Σ_k e^{z_k − max z}                              (11)
    J^b       = −Σ_i y_i (z_i − max z − log Σ_k e^{z_k − max z}), y_i = 0 adding 0    (14)
    ∂J^b/∂z_j = g (S_j Σ_k y_k − y_j), and 0 for an example without a target          (15)
    J         = Σ_b J^b, the 1/B being part of y                                      (13)

The loops compute one number at a time, for few logits. ``softmax_rows.py`` and ``label_cross_entropy.py`` compute
many in vectors. A task of ``softmax_cross_entropy`` computes ``share`` rows.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import DOUBLE, FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel


@kernel(
    logits=POINTER,  # (rows, classes)
    targets=POINTER,  # the same, as probabilities; not read if neither needs_loss nor needs_grad
    grad_out=POINTER,  # (rows), of any stride
    grad_out_stride=INT,  # in floats; 0 if one number serves all rows
    probs=POINTER,  # (rows, classes)
    losses=POINTER,  # (rows)
    grad_logits=POINTER,  # (rows, classes)
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
    needs_loss=BOOL,
    needs_grad=BOOL,
)
def softmax_cross_entropy(emit: Emitter, a: Arguments) -> None:
    """Compute this task's rows: probabilities, and the loss and its gradient if needed."""
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        logits, targets, probs, grad_logits = (
            address + row * a.classes * 4 for address in (a.logits, a.targets, a.probs, a.grad_logits)
        )
        largest = emit.variable(emit.load(logits, FLOAT))
        with emit.loop(1, a.classes) as c:
            logit = emit.load(logits + c * 4, FLOAT)
            is_larger = (logit > largest.get()) | logit.is_nan()
            largest.set(emit.select(is_larger, logit, largest.get()))
        exp_sum = emit.variable(emit.constant(FLOAT, 0))
        with emit.loop(0, a.classes) as c:
            exp = emit.exp(emit.load(logits + c * 4, FLOAT) - largest.get())
            emit.store(exp, probs + c * 4)
            exp_sum.add(exp)
        with emit.loop(0, a.classes) as c:
            emit.store(emit.load(probs + c * 4, FLOAT) / exp_sum.get(), probs + c * 4)  # eq. (11)
        with emit.if_then(a.needs_loss == 1):
            log_sum, loss = emit.log(exp_sum.get()), emit.variable(emit.constant(FLOAT, 0))
            with emit.loop(0, a.classes) as c:
                target, logit = emit.load(targets + c * 4, FLOAT), emit.load(logits + c * 4, FLOAT)
                term = target * (logit - largest.get() - log_sum)
                loss.set(loss.get() - emit.select(target == 0, emit.constant(FLOAT, 0), term))  # eq. (14)
            emit.store(loss.get(), a.losses + row * 4)
        with emit.if_then(a.needs_grad == 1):
            grad_out = emit.load(a.grad_out + row * a.grad_out_stride * 4, FLOAT)
            _row_grad(emit, grad_out, targets, probs, grad_logits, a.classes)


def _row_grad(
    emit: Emitter, grad_out: Value, targets: Value, probs: Value, grad_logits: Value, classes: Value
) -> None:
    target_sum, num_targets = emit.variable(emit.constant(FLOAT, 0)), emit.variable(emit.constant(INT64, 0))
    with emit.loop(0, classes) as c:
        target = emit.load(targets + c * 4, FLOAT)
        target_sum.add(target)
        num_targets.add(emit.select(target == 0, emit.constant(INT64, 0), emit.constant(INT64, 1)))
    grad_out = emit.select(num_targets.get() == 0, emit.constant(FLOAT, 0), grad_out)
    with emit.loop(0, classes) as c:
        difference = emit.load(probs + c * 4, FLOAT) * target_sum.get() - emit.load(targets + c * 4, FLOAT)
        emit.store(grad_out * difference, grad_logits + c * 4)  # eq. (15)


@kernel(
    losses=POINTER,
    loss=POINTER,
    rows=INT,
)
def sum_losses(emit: Emitter, a: Arguments) -> None:
    """Sum the losses of all rows in double precision, in task 0."""
    with emit.if_then(a.task == 0):
        total = emit.variable(emit.constant(DOUBLE, 0))
        with emit.loop(0, a.rows) as row:
            total.set(total.get() + emit.fpext(emit.load(a.losses + row * 4, FLOAT)))  # eq. (13)
        emit.store(emit.fptrunc(total.get()), a.loss)
