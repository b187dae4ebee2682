"""Softmax of rows of logits and its gradient, in vectors.

    S_i(z) = e^{z_i − max z} / Σ_k e^{z_k − max z}                               (11)
    B_i(g, S) = S_i (g_i − Σ_k g_k S_k)                                          (12)

A task computes ``share`` rows. The maximum ignores NaN, which makes the sum NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from manualgrad.cpu.ir.exponential import exp_nonpositive
from manualgrad.cpu.ir.tiles import ACCUMULATORS, row_vectors, task_range
from manualgrad.cpu.ir.values import Number, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel


def row_max(emit: Emitter, row: Value, numel: Value) -> Value:
    """Return the largest float of a row, −∞ if all are NaN."""

    def larger(largest: Value, n: Value, mask: Value | None) -> Value:
        x = emit.masked_load(row + n * 4, mask, -math.inf)
        return emit.select(x > largest, x, largest)

    largest = _fold(emit, numel, -math.inf, larger, lambda a, b: emit.select(a > b, a, b))
    return emit.reduce_max(largest)


def row_sum(emit: Emitter, row: Value, numel: Value, largest: Value, exps: Value | None = None) -> Value:
    """Return Σ_k e^{x_k − largest} of a row. The powers are stored in the row ``exps``, if there is one."""
    shift = emit.splat(largest)

    def add(total: Value, n: Value, mask: Value | None) -> Value:
        exp = exp_nonpositive(emit, emit.masked_load(row + n * 4, mask, -math.inf) - shift)
        if exps is not None:
            emit.masked_store(exp, exps + n * 4, mask)
        return total + exp

    return emit.reduce_add(_fold(emit, numel, 0, add, lambda a, b: a + b))


def _fold(
    emit: Emitter,
    numel: Value,
    initial: Number,
    step: Callable[[Value, Value, Value | None], Value],
    combine: Callable[[Value, Value], Value],
) -> Value:
    """Fold a row's vectors by ``step(result so far, first float, mask)``, and the accumulators by ``combine``."""
    results = [emit.variable(emit.constant(emit.float_vector, initial)) for _ in range(ACCUMULATORS)]
    for n, mask, m in row_vectors(emit, numel):
        results[m].set(step(results[m].get(), n, mask))
    first, second, third, fourth = (result.get() for result in results)
    return combine(combine(first, second), combine(third, fourth))


@kernel(
    logits=POINTER,  # (rows, classes)
    probs=POINTER,  # (rows, classes)
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
)
def softmax_rows(emit: Emitter, a: Arguments) -> None:
    """Compute the softmax of this task's rows."""
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        logits, probs = (address + row * a.classes * 4 for address in (a.logits, a.probs))
        exp_sum = emit.splat(row_sum(emit, logits, a.classes, row_max(emit, logits, a.classes), probs))
        for n, mask, _ in row_vectors(emit, a.classes):
            emit.masked_store(emit.masked_load(probs + n * 4, mask, 0) / exp_sum, probs + n * 4, mask)  # eq. (11)


@kernel(
    grad_out=POINTER,  # (rows, classes)
    probs=POINTER,  # the same
    grad_logits=POINTER,  # the same
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
)
def softmax_rows_grad(emit: Emitter, a: Arguments) -> None:
    """Compute the gradient of this task's rows."""
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        grad_out, probs, grad_logits = (
            address + row * a.classes * 4 for address in (a.grad_out, a.probs, a.grad_logits)
        )

        def add(
            total: Value, n: Value, mask: Value | None, grad_out: Value = grad_out, probs: Value = probs
        ) -> Value:
            g, s = (emit.masked_load(address + n * 4, mask, 0) for address in (grad_out, probs))
            return emit.fma(g, s, total)

        dot = emit.splat(emit.reduce_add(_fold(emit, a.classes, 0, add, lambda a, b: a + b)))
        for n, mask, _ in row_vectors(emit, a.classes):
            g, s = (emit.masked_load(address + n * 4, mask, 0) for address in (grad_out, probs))
            emit.masked_store(s * (g - dot), grad_logits + n * 4, mask)  # eq. (12)
