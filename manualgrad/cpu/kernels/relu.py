"""R and its derivative, in one pass each.

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)

A NaN stays one, and lets a gradient through.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from llvmlite import ir

from manualgrad.cpu.ir.values import FLOAT, Value
from manualgrad.cpu.ir.vectors import Emitter

FORWARD = ("*z", "*out", "floats", "share")
BACKWARD = ("*g", "*z", "*dz", "floats", "share", "halved", "subgradient.0")


def relu_forward(emit: Emitter) -> None:
    """R(z) of one slot's ``share`` of the floats."""
    a = emit.named(FORWARD)
    for n, type_ in _each(emit, a):
        z, nothing = emit.load(a.z + n * 4, type_), emit.number(type_, 0)
        emit.store(emit.select((z > 0) | z.is_nan(), z, nothing), a.out + n * 4)  # eq. (9)


def relu_backward(emit: Emitter) -> None:
    """g ∂R/∂z of one slot's ``share`` of the floats; ``halved`` is 0 where the derivative at 0 is, else 1."""
    a = emit.named(BACKWARD)
    for n, type_ in _each(emit, a):
        g, z, nothing = emit.load(a.g + n * 4, type_), emit.load(a.z + n * 4, type_), emit.number(type_, 0)
        half, at_zero = a.subgradient, a.halved == 1
        if type_ is not FLOAT:
            half, at_zero = emit.every_lane(half), emit.every_lane(at_zero)
        emit.store(_derivative(emit, g, z, half, nothing, at_zero), a.dz + n * 4)


def _each(emit: Emitter, a: SimpleNamespace) -> Iterator[tuple[Value, ir.Type]]:
    """This slot's floats: as vectors, and those that are left one by one."""
    start = a.slot * a.share
    end = emit.select(start + a.share < a.floats, start + a.share, a.floats)
    whole = emit.select(start < end, end - (end - start) % emit.lanes, start)
    with emit.loop(start, whole, emit.lanes) as n:
        yield n, emit.floats
    with emit.loop(whole, end) as n:
        yield n, FLOAT


def _derivative(emit: Emitter, g: Value, z: Value, half: Value, nothing: Value, at_zero: Value) -> Value:
    tied = emit.select((z == 0) & at_zero, g * half, nothing)
    return emit.select((z > 0) | z.is_nan(), g, tied)  # eq. (10)
