"""The update of one parameter by gradient descent.

w ← w − η ∂J/∂w                   unless a number is not finite, or a label is no class

A task updates ``share`` floats.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import float_tiles, task_range
from manualgrad.cpu.ir.values import FLOAT, INT64
from manualgrad.cpu.ir.vectors import Emitter

ARGUMENTS = (
    "*param",
    "*grad",
    "numel",  # of both
    "share",  # floats per task
    "*lr",  # η
    "*counts",  # of one_hot_targets: no update if the second, the number of invalid labels, is not 0
    "*nonfinite",  # of conv_pool_backward: no update if one is NaN
    "num_nonfinite",  # floats in nonfinite
    "*loss",  # no update if it is not finite
)


def sgd_update(emit: Emitter) -> None:
    """Update this task's floats."""
    a = emit.load_arguments(ARGUMENTS)
    nonfinite = emit.variable(emit.load(a.loss, FLOAT) * 0)
    with emit.loop(0, a.num_nonfinite) as n:
        nonfinite.add(emit.load(a.nonfinite + n * 4, FLOAT) * 0)
    invalid_labels = emit.load(a.counts + 8, INT64)
    start, stop = task_range(emit, a, a.numel)
    with emit.if_then((nonfinite.get() == 0) & (invalid_labels == 0) & (start < stop)):
        negative_lr = emit.constant(FLOAT, 0) - emit.load(a.lr, FLOAT)
        for n, type_ in float_tiles(emit, start, stop):
            factor = negative_lr if type_ is FLOAT else emit.splat(negative_lr)
            grad, param = emit.load(a.grad + n * 4, type_), emit.load(a.param + n * 4, type_)
            emit.store(emit.fma(factor, grad, param), a.param + n * 4)
