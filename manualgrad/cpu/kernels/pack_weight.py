"""Weights between the order that people see, (K, R, P+1, Q+1), and those that the kernels read and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from manualgrad.cpu.ir.values import FLOAT, Value
from manualgrad.cpu.ir.vectors import Emitter

ARGUMENTS = (
    "*seen",  # [k][r][p][q], dense
    "*other",  # where k, r, p and q are all 0
    "outputs",
    "share",  # how many k a slot moves
    "channels",
    "kernel_rows",
    "kernel_columns",
    "step_k",  # bytes in ``other`` from one k to the next, negative where it counts down
    "step_r",
    "step_p",
    "step_q",
    "slots",  # how many sums there are of each weight
    "step_slot",  # bytes from one to the next
    "*bias",  # [k]
    "*bias_sums",  # [slot][bias_step]
    "bias_step",
)


@contextmanager
def _share(emit: Emitter, a: SimpleNamespace) -> Iterator[Value]:
    """Every k of this slot's share."""
    end = a.slot * a.share + a.share
    with emit.loop(a.slot * a.share, emit.select(end < a.outputs, end, a.outputs)) as k:
        yield k


def _each(emit: Emitter, a: SimpleNamespace) -> Iterator[tuple[Value, Value]]:
    """The two addresses of every weight in this slot's share, neighbours in ``other`` one after the other: those of
    k, or else of r."""
    rows, columns = a.kernel_rows, a.kernel_columns
    with (
        emit.when(a.step_k == 4),
        emit.loop(0, a.channels) as r,
        emit.loop(0, rows) as p,
        emit.loop(0, columns) as q,
        _share(emit, a) as k,
    ):
        yield _addresses(a, k, r, p, q)
    with (
        emit.when(a.step_k > 4),
        _share(emit, a) as k,
        emit.loop(0, rows) as p,
        emit.loop(0, columns) as q,
        emit.loop(0, a.channels) as r,
    ):
        yield _addresses(a, k, r, p, q)


def _addresses(a: SimpleNamespace, k: Value, r: Value, p: Value, q: Value) -> tuple[Value, Value]:
    seen = ((k * a.channels + r) * a.kernel_rows + p) * a.kernel_columns + q
    return a.seen + seen * 4, a.other + k * a.step_k + r * a.step_r + p * a.step_p + q * a.step_q


def arrange(emit: Emitter) -> None:
    """Into the kernels' order."""
    for seen, other in _each(emit, emit.named(ARGUMENTS)):
        emit.store(emit.load(seen, FLOAT), other)


def collect(emit: Emitter) -> None:
    """Out of the kernels' order, the sum of what all slots found; and that of the biases' sums."""
    a = emit.named(ARGUMENTS)

    def total(address: Value, step: Value) -> Value:
        found = emit.variable(emit.load(address, FLOAT))
        with emit.loop(1, a.slots) as slot:
            found.add(emit.load(address + slot * step, FLOAT))
        return found.get()

    for seen, other in _each(emit, a):
        emit.store(total(other, a.step_slot), seen)
    with _share(emit, a) as k:
        emit.store(total(a.bias_sums + k * 4, a.bias_step * 4), a.bias + k * 4)
