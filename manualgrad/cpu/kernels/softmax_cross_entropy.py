"""Softmax and its cross-entropy for a few rows of classes, and y from labels: loops instead of a dozen operators
each.

    S_i       = e^{z_i − max z} / Σ_k e^{z_k − max z}                              (11)
    J^b       = −Σ_i y_i (z_i − max z − log Σ_k e^{z_k − max z}), y_i = 0 adding 0    (14)
    ∂J^b/∂z_j = g (S_j Σ_k y_k − y_j), and 0 for an example without a target          (15)

One number after the other: for more of them than ``small_kernels.py`` lets through, operators on vectors are faster.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import share
from manualgrad.cpu.ir.values import DOUBLE, FLOAT, INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

ROWS = (
    "*z",  # [row][class]
    "*y",  # the same; not read where neither a cost nor a gradient is asked for
    "*g",  # [row], g_step floats apart
    "g_step",
    "*s",  # [row][class]
    "*cost",  # [row]
    "*dz",  # [row][class]
    "rows",
    "share",  # how many of them a slot computes
    "classes",
    "costs",  # 1 where J is asked for
    "gradients",  # 1 where ∂J/∂z is
)
SUMS = ("*cost", "*sum", "rows")
TARGETS = (
    "*labels",  # [row], whole numbers of 8 bytes
    "*y",  # [row][class]
    "*counts",  # two whole numbers: the rows that count, and those whose label is no class
    "rows",
    "share",  # how many of them a slot writes; it counts all
    "classes",
    "ignored",  # the label of rows that do not count
    "mean",  # 1 where y is divided by the number of rows that count
)


def class_rows(emit: Emitter) -> None:
    """Of a slot's rows S, and what is asked for of J^b, whose 1/B is part of y, and of ∂J/∂z."""
    a = emit.named(ROWS)
    with emit.loop(*share(emit, a)) as row:
        z, y, s, dz = (address + row * a.classes * 4 for address in (a.z, a.y, a.s, a.dz))
        largest = emit.variable(emit.load(z, FLOAT))
        with emit.loop(1, a.classes) as c:
            value = emit.load(z + c * 4, FLOAT)
            wins = (value > largest.get()) | value.is_nan()
            largest.set(emit.select(wins, value, largest.get()))
        exponentials = emit.variable(emit.number(FLOAT, 0))
        with emit.loop(0, a.classes) as c:
            e = emit.exp(emit.load(z + c * 4, FLOAT) - largest.get())
            emit.store(e, s + c * 4)
            exponentials.add(e)
        with emit.loop(0, a.classes) as c:
            emit.store(emit.load(s + c * 4, FLOAT) / exponentials.get(), s + c * 4)  # eq. (11)
        with emit.when(a.costs == 1):
            log, cost = emit.log(exponentials.get()), emit.variable(emit.number(FLOAT, 0))
            with emit.loop(0, a.classes) as c:
                target, value = emit.load(y + c * 4, FLOAT), emit.load(z + c * 4, FLOAT)
                term = target * (value - largest.get() - log)
                cost.set(cost.get() - emit.select(target == 0, emit.number(FLOAT, 0), term))  # eq. (14)
            emit.store(cost.get(), a.cost + row * 4)
        with emit.when(a.gradients == 1):
            _gradient(emit, emit.load(a.g + row * a.g_step * 4, FLOAT), y, s, dz, a.classes)


def cost_sum(emit: Emitter) -> None:
    """J, by the first slot: the sum of all J^b."""
    a = emit.named(SUMS)
    with emit.when(a.slot == 0):
        total = emit.variable(emit.number(DOUBLE, 0))
        with emit.loop(0, a.rows) as row:
            total.set(total.get() + emit.double_of(emit.load(a.cost + row * 4, FLOAT)))  # eq. (13)
        emit.store(emit.rounded(total.get()), a.sum)


def _gradient(emit: Emitter, g: Value, y: Value, s: Value, dz: Value, classes: Value) -> None:
    total, targets = emit.variable(emit.number(FLOAT, 0)), emit.variable(emit.number(INT64, 0))
    with emit.loop(0, classes) as c:
        target = emit.load(y + c * 4, FLOAT)
        total.add(target)
        targets.add(emit.select(target == 0, emit.number(INT64, 0), emit.number(INT64, 1)))
    g = emit.select(targets.get() == 0, emit.number(FLOAT, 0), g)
    with emit.loop(0, classes) as c:
        both = emit.load(s + c * 4, FLOAT) * total.get() - emit.load(y + c * 4, FLOAT)
        emit.store(g * both, dz + c * 4)  # eq. (15)


def targets(emit: Emitter) -> None:
    """y: 1, or 1/B of (13), at each row's label, 0 elsewhere."""
    a = emit.named(TARGETS)
    one, none = emit.number(INT64, 1), emit.number(INT64, 0)
    counted, outside = emit.variable(none), emit.variable(none)
    with emit.loop(0, a.rows) as row:
        label = emit.load(a.labels + row * 8, INT64)
        counts = emit.select(label == a.ignored, none, one)
        counted.add(counts)
        # a negative label, seen as a number without a sign, is larger than any class
        outside.add(emit.select(label.below(a.classes), none, counts))
    weight = emit.select(a.mean == 1, emit.number(FLOAT, 1) / emit.float_of(counted.get()), emit.number(FLOAT, 1))
    with emit.loop(*share(emit, a)) as row:
        label = emit.load(a.labels + row * 8, INT64)
        counts = emit.select(label == a.ignored, emit.number(FLOAT, 0), weight)
        with emit.loop(0, a.classes) as c:
            emit.store(emit.select(label == c, counts, emit.number(FLOAT, 0)), a.y + (row * a.classes + c) * 4)
    with emit.when(a.slot == 0):
        emit.store(counted.get(), a.counts)
        emit.store(outside.get(), a.counts + 8)
