"""g ∂R/∂z: g where z > 0 (or is NaN), a share of it where z = 0, else 0; in one pass.

∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)
"""

from __future__ import annotations

from manualgrad.kernels.vectors import FLOAT, Emitter, Value

ARGUMENTS = ("*g", "*z", "*dz", "floats", "share", "halved", "subgradient.0")


def relu_backward(emit: Emitter) -> None:
    """One slot's ``share`` of the floats; ``halved`` is 0 where the derivative at 0 is, and 1 elsewhere."""
    a = emit.named(ARGUMENTS)
    start = a.slot * a.share
    end = emit.select(start + a.share < a.floats, start + a.share, a.floats)
    whole = end - (end - start) % emit.lanes
    half, nothing = emit.every_lane(a.subgradient), emit.number(emit.floats, 0)
    at_zero = emit.every_lane(a.halved == 1)
    with emit.loop(start, whole, emit.lanes) as n:
        g, z = (emit.load(address + n * 4, emit.floats) for address in (a.g, a.z))
        emit.store(_derivative(emit, g, z, half, nothing, at_zero), a.dz + n * 4)
    with emit.loop(whole, end) as n:
        g, z = (emit.load(address + n * 4, FLOAT) for address in (a.g, a.z))
        zero = emit.number(FLOAT, 0)
        emit.store(_derivative(emit, g, z, a.subgradient, zero, a.halved == 1), a.dz + n * 4)


def _derivative(emit: Emitter, g: Value, z: Value, half: Value, nothing: Value, at_zero: Value) -> Value:
    tied = emit.select((z == 0) & at_zero, g * half, nothing)
    return emit.select((z > 0) | z.is_nan(), g, tied)  # eq. (10)
