"""ReLU and its gradient, in one pass each.

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)

``subgradient`` stands for the ½. R(NaN) is NaN, and the gradient passes there. A task computes ``share`` floats.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import float_tiles, task_range
from manualgrad.cpu.ir.values import FLOAT, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import BOOL, FLOAT32, INT, POINTER, kernel


@kernel(
    z=POINTER,
    out=POINTER,
    numel=INT,
    share=INT,
)
def relu_forward(emit: Emitter, a: Arguments) -> None:
    """Compute R(z) of this task's floats."""
    for n, type_ in float_tiles(emit, *task_range(emit, a, a.numel)):
        z, zero = emit.load(a.z + n * 4, type_), emit.constant(type_, 0)
        emit.store(emit.select((z > 0) | z.is_nan(), z, zero), a.out + n * 4)  # eq. (9)


@kernel(
    grad_out=POINTER,
    z=POINTER,
    grad_z=POINTER,
    numel=INT,
    share=INT,
    has_subgradient=BOOL,  # False if the derivative at 0 is 0
    subgradient=FLOAT32,
)
def relu_backward(emit: Emitter, a: Arguments) -> None:
    """Compute the gradient with respect to z of this task's floats."""
    for n, type_ in float_tiles(emit, *task_range(emit, a, a.numel)):
        grad_out, z, zero = (
            emit.load(a.grad_out + n * 4, type_),
            emit.load(a.z + n * 4, type_),
            emit.constant(type_, 0),
        )
        subgradient, has_subgradient = a.subgradient, a.has_subgradient == 1
        if type_ is not FLOAT:
            subgradient, has_subgradient = emit.splat(subgradient), emit.splat(has_subgradient)
        emit.store(_grad_z(emit, grad_out, z, subgradient, zero, has_subgradient), a.grad_z + n * 4)


def _grad_z(
    emit: Emitter, grad_out: Value, z: Value, subgradient: Value, zero: Value, has_subgradient: Value
) -> Value:
    not_positive = emit.select((z == 0) & has_subgradient, grad_out * subgradient, zero)
    return emit.select((z > 0) | z.is_nan(), grad_out, not_positive)  # eq. (10)
