"""ReLU and its gradient, in one pass each.

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)

``subgradient`` stands for the ½. R(NaN) is NaN, and the gradient passes there. A task computes ``share`` floats.
"""

from __future__ import annotations

from collections.abc import Iterator

from manualgrad.cpu.ir.streams import end_streams, stream
from manualgrad.cpu.ir.tiles import float_tiles, task_range
from manualgrad.cpu.ir.values import FLOAT, INT64, Value
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


_BACKWARD_TYPES = {
    "grad_out": POINTER,
    "z": POINTER,
    "grad_z": POINTER,
    "numel": INT,
    "share": INT,
    "has_subgradient": BOOL,  # False if the derivative at 0 is 0
    "subgradient": FLOAT32,
}


@kernel(**_BACKWARD_TYPES)
def relu_backward(emit: Emitter, a: Arguments) -> None:
    """Compute the gradient with respect to z of this task's floats."""
    for address, grad_z in _grads_z(emit, a):
        emit.store(grad_z, address)


@kernel(**_BACKWARD_TYPES)
def relu_backward_streams(emit: Emitter, a: Arguments) -> None:
    """Compute the same, and store it past the caches; ``grad_z`` is other memory than ``grad_out`` and z."""
    for address, grad_z in _grads_z(emit, a):
        if grad_z.raw.type == FLOAT:
            emit.store(grad_z, address)
        else:
            stream(emit, grad_z, address)
    end_streams(emit)


def _grads_z(emit: Emitter, a: Arguments) -> Iterator[tuple[Value, Value]]:
    """Addresses of vectors, and of single floats, of this task's gradients, and their values."""
    for n, type_ in float_tiles(emit, *task_range(emit, a, a.numel)):
        grad_out, z, zero = (
            emit.load(a.grad_out + n * 4, type_),
            emit.load(a.z + n * 4, type_),
            emit.constant(type_, 0),
        )
        subgradient, has_subgradient = a.subgradient, a.has_subgradient == 1
        if type_ is not FLOAT:
            subgradient, has_subgradient = emit.splat(subgradient), emit.splat(has_subgradient)
        yield a.grad_z + n * 4, _grad_z(emit, grad_out, z, subgradient, zero, has_subgradient)


@kernel(
    grad_out=POINTER,  # the first number that is no border, as in the next one
    out=POINTER,  # R(z)
    grad_z=POINTER,  # (images, rows, row_numel)
    images=INT,
    share=INT,  # images per task
    rows=INT,
    row_numel=INT,
    image_bytes=INT,  # of grad_out and out, with their border
    row_bytes=INT,
)
def relu_backward_inside(emit: Emitter, a: Arguments) -> None:
    """Compute the gradient with respect to z, 0 where z is 0, of this task's images without their border."""
    with emit.loop(*task_range(emit, a, a.images)) as image, emit.loop(0, a.rows) as row:
        source, target = image * a.image_bytes + row * a.row_bytes, (image * a.rows + row) * a.row_numel
        for n, type_ in float_tiles(emit, emit.constant(INT64, 0), a.row_numel):
            out, zero = emit.load(a.out + source + n * 4, type_), emit.constant(type_, 0)
            grad_out = emit.load(a.grad_out + source + n * 4, type_)
            is_active = (out > 0) | out.is_nan()
            emit.store(emit.select(is_active, grad_out, zero), a.grad_z + (target + n) * 4)  # eq. (10)


def _grad_z(
    emit: Emitter, grad_out: Value, z: Value, subgradient: Value, zero: Value, has_subgradient: Value
) -> Value:
    not_positive = emit.select((z == 0) & has_subgradient, grad_out * subgradient, zero)
    return emit.select((z > 0) | z.is_nan(), grad_out, not_positive)  # eq. (10)
