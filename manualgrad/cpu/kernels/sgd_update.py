"""The update of one parameter by gradient descent.

    w ← w − η ∂J/∂w

Nothing is updated if the loss is not finite, if ``conv_pool_backward`` has found a number that is not finite, or if a
label is invalid. A task, one part of a parallel region, updates up to ``share`` floats. A plan passes −η ∂J/∂w as
``grad`` and −1 as ``learning_rate``, so that its result is also the update.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import float_tiles, task_range
from manualgrad.cpu.ir.values import FLOAT, INT64
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel


@kernel(
    param=POINTER,
    grad=POINTER,
    numel=INT,  # of both
    share=INT,  # floats per task
    learning_rate=POINTER,  # η
    counts=POINTER,  # of one_hot_targets: no update if the second, the number of invalid labels, is not 0
    nonfinite=POINTER,  # of conv_pool_backward: no update if one is NaN
    nonfinite_numel=INT,  # floats in nonfinite
    loss=POINTER,  # no update if it is not finite
)
def sgd_update(emit: Emitter, a: Arguments) -> None:
    """Update this task's floats."""
    nonfinite_sum = emit.variable(emit.load(a.loss, FLOAT) * 0)  # x·0 is 0 if x is finite, else NaN
    with emit.loop(0, a.nonfinite_numel) as n:
        nonfinite_sum.add(emit.load(a.nonfinite + n * 4, FLOAT) * 0)
    invalid_labels = emit.load(a.counts + 8, INT64)  # counts[1]
    start, stop = task_range(emit, a, a.numel)
    with emit.if_then((nonfinite_sum.get() == 0) & (invalid_labels == 0) & (start < stop)):
        negative_lr = emit.constant(FLOAT, 0) - emit.load(a.learning_rate, FLOAT)
        for n, type_ in float_tiles(emit, start, stop):
            factor = negative_lr if type_ is FLOAT else emit.splat(negative_lr)
            grad, param = emit.load(a.grad + n * 4, type_), emit.load(a.param + n * 4, type_)
            emit.store(emit.fma(factor, grad, param), a.param + n * 4)
