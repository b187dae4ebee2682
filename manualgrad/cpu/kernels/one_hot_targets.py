"""One-hot targets from labels: y of (14), 1 at each row's label and 0 elsewhere.

With ``divides_by_count`` it is 1/B of (13) at the label. B counts the rows whose label is not ``ignore_index``;
targets of the others are 0. Each task counts all rows and writes the targets of ``share`` rows. The caller discards
the targets if a label is no class.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import BOOL, INT, POINTER, kernel


def count_labels(emit: Emitter, a: Arguments) -> Value:
    """Count the labels of all rows, which task 0 stores, and return one over the number that are not ignored."""
    one, zero = emit.constant(INT64, 1), emit.constant(INT64, 0)
    num_counted, num_invalid = emit.variable(zero), emit.variable(zero)
    with emit.loop(0, a.rows) as row:
        label = emit.load(a.labels + row * 8, INT64)
        is_counted = emit.select(label == a.ignore_index, zero, one)
        num_counted.add(is_counted)
        # as an unsigned integer, a negative label is larger than any class
        num_invalid.add(emit.select(label.ult(a.classes), zero, is_counted))
    with emit.if_then(a.task == 0):
        emit.store(num_counted.get(), a.counts)
        emit.store(num_invalid.get(), a.counts + 8)
    return emit.constant(FLOAT, 1) / emit.sitofp(num_counted.get())


@kernel(
    labels=POINTER,  # (rows) int64
    targets=POINTER,  # (rows, classes)
    counts=POINTER,  # two int64: the rows that are not ignored, and those of them whose label is no class
    rows=INT,
    share=INT,  # rows per task
    classes=INT,
    ignore_index=INT,
    divides_by_count=BOOL,  # True if targets are divided by the number of rows that are not ignored
)
def one_hot_targets(emit: Emitter, a: Arguments) -> None:
    """Compute the targets of this task's rows; task 0 also stores the counts."""
    mean_weight = count_labels(emit, a)
    weight = emit.select(a.divides_by_count == 1, mean_weight, emit.constant(FLOAT, 1))
    with emit.loop(*task_range(emit, a, a.rows)) as row:
        label = emit.load(a.labels + row * 8, INT64)
        row_weight = emit.select(label == a.ignore_index, emit.constant(FLOAT, 0), weight)
        with emit.loop(0, a.classes) as c:
            target = emit.select(label == c, row_weight, emit.constant(FLOAT, 0))
            emit.store(target, a.targets + (row * a.classes + c) * 4)
