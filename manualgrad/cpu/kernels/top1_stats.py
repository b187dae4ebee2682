"""The probability of each row's label, and the number of rows whose label is the most probable class.

Among classes of equal probability the first counts. Task 0 computes all rows. A label that is no class is read as
class 0, so that no address is out of bounds: the caller discards the results of such a batch.
"""

from __future__ import annotations

from manualgrad.cpu.ir.values import FLOAT, INT64
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel


@kernel(
    probs=POINTER,  # (rows, classes)
    labels=POINTER,  # (rows) int64
    label_probs=POINTER,  # (rows)
    num_correct=POINTER,  # one int64
    rows=INT,
    classes=INT,
)
def top1_stats(emit: Emitter, a: Arguments) -> None:
    """Compute the statistics of all rows, in task 0."""
    with emit.if_then(a.task == 0):
        num_correct = emit.variable(emit.constant(INT64, 0))
        with emit.loop(0, a.rows) as row:
            label, probs = emit.load(a.labels + row * 8, INT64), a.probs + row * a.classes * 4
            label = emit.select(label.ult(a.classes), label, emit.constant(INT64, 0))
            label_prob = emit.load(probs + label * 4, FLOAT)
            emit.store(label_prob, a.label_probs + row * 4)
            num_better = emit.variable(emit.constant(INT64, 0))
            with emit.loop(0, a.classes) as c:
                prob = emit.load(probs + c * 4, FLOAT)
                is_better = (prob > label_prob) | ((prob == label_prob) & (c < label))
                num_better.add(emit.zext(is_better, INT64))
            num_correct.add(emit.zext(num_better.get() == 0, INT64))
        emit.store(num_correct.get(), a.num_correct)
