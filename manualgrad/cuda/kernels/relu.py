"""ReLU as an epilogue, equation (9), and its backward, equation (10)."""

import triton
import triton.language as tl


@triton.jit
def relu(z):
    """R(z); NaN stays NaN."""
    return tl.where(z < 0, 0.0, z)  # eq. (9)


@triton.jit
def sign_of(z):
    """−1 where z is negative, 0 where it is 0, 1 elsewhere, as where z is NaN: all of z that equation (10) reads."""
    return tl.where(z < 0, -1, tl.where(z == 0, 0, 1)).to(tl.int8)


@triton.jit
def relu_gradient(g, z, SUBGRADIENT: tl.constexpr):
    """g ∂R/∂z from z or its sign; from R(z) too, if the derivative SUBGRADIENT at 0 is 0."""
    z = z.to(tl.float32)
    if SUBGRADIENT == 0:
        grad = tl.where(z <= 0, 0.0, g)  # eq. (10)
    else:
        at_zero = (g.to(tl.float32) * SUBGRADIENT).to(g.dtype)
        grad = tl.where(z < 0, 0.0, tl.where(z == 0, at_zero, g))  # eq. (10)
    return grad


@triton.jit
def relu_backward(grad_z, g, z, subgradient, NUMEL, BLOCK: tl.constexpr):
    """grad_z = g where z > 0 or z is NaN, subgradient · g where z = 0, 0 where z < 0; NUMEL numbers in a row."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < NUMEL
    g_at = tl.load(g + at, mask=inside).to(tl.float32)
    z_at = tl.load(z + at, mask=inside).to(tl.float32)
    at_zero = g_at * subgradient if subgradient != 0 else tl.zeros_like(g_at)  # 0, even where g is infinite or NaN
    grad = tl.where(z_at < 0, 0.0, tl.where(z_at == 0, at_zero, g_at))  # eq. (10)
    tl.store(grad_z + at, grad.to(grad_z.dtype.element_ty), mask=inside)
