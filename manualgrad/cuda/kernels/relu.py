"""ReLU as an epilogue, equation (9), and its backward, equation (10)."""

import triton
import triton.language as tl


@triton.jit
def relu(z):
    """R(z); NaN stays NaN."""
    return tl.where(z < 0, 0.0, z)  # eq. (9)


@triton.jit
def select_active(g, r):
    """g where r = R(z) is positive or NaN, 0 elsewhere: the derivative at 0 is 0."""
    return tl.where(r.to(tl.float32) <= 0, 0.0, g)  # eq. (10)


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
