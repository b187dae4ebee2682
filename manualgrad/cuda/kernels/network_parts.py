"""Parts of a network's kernels: a product in float32, ReLU, and ReLU with 2×2 pooling, forward and backward."""

import triton
import triton.language as tl

# Pooling indices of windows without a positive number, as in manualgrad/pool_index.py.
AT_ZERO = tl.constexpr(254)
INACTIVE = tl.constexpr(255)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b in float32: "tf32x3" by tensor cores, each factor as a sum of two, or "ieee" by multiply-adds.

    A tensor core truncates its sums: callers keep a "tf32x3" product to 16 terms and add the products themselves."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def relu(z):
    """R(z) of equation (9); NaN stays NaN."""
    return tl.where(z <= 0, 0.0, z)  # eq. (9)


@triton.jit
def relu_backward(g, z, SUBGRADIENT: tl.constexpr):
    """g ∂R/∂z of equation (10); g where z is NaN."""
    if SUBGRADIENT == 0:
        return tl.where(z <= 0, 0.0, g)  # eq. (10)
    else:
        return tl.where(z < 0, 0.0, tl.where(z == 0, SUBGRADIENT * g, g))  # eq. (10)


@triton.jit
def relu_pool(z, WINDOWS: tl.constexpr, C: tl.constexpr):
    """P(R(z)), (WINDOWS, C), and the pooling indices, of z (4 WINDOWS, C), whose rows are 4 · window + place."""
    z = tl.reshape(z, (WINDOWS, 4, C))
    place = tl.arange(0, 4)[None, :, None]
    largest = tl.max(z, axis=1)  # eq. (4)
    first_place = tl.min(tl.where(z == largest[:, None, :], place, 4), axis=1)
    last_nan = tl.max(tl.where(z != z, place, -1), axis=1)  # NaN is a maximum, the last one counts
    z_first = tl.sum(tl.where(place == 0, z, 0.0), axis=1)
    index = tl.where(largest > 0, first_place, tl.where(z_first == 0, AT_ZERO, INACTIVE))
    index = tl.where(last_nan >= 0, last_nan, index)
    pooled = tl.where(last_nan >= 0, float("nan"), tl.maximum(largest, 0.0))  # eq. (9)
    return pooled, index.to(tl.uint8)


@triton.jit
def relu_pool_backward(g, pool_index, at, place, inside, SUBGRADIENT: tl.constexpr):
    """P⁻¹(g) R' at one place of each window; ``at`` are the windows' offsets in g and in pool_index."""
    grad = tl.load(g + at, mask=inside, other=0.0)
    index = tl.load(pool_index + at, mask=inside, other=255).to(tl.int32)
    return at_place(grad, index, place, SUBGRADIENT)


@triton.jit
def at_place(grad, index, place, SUBGRADIENT: tl.constexpr):
    """grad where ``index`` is ``place``, times R'(0) where it is AT_ZERO and ``place`` is the first, 0 elsewhere."""
    if SUBGRADIENT == 0:
        return tl.where(index == place, grad, 0.0)  # eq. (4), (10)
    else:
        at_zero = tl.where((index == AT_ZERO) & (place == 0), SUBGRADIENT * grad, 0.0)  # eq. (10) with z = 0
        return tl.where(index == place, grad, at_zero)  # eq. (4), (10)
