"""Parts of a network's kernels: a product in float32, ReLU, and ReLU with pooling, forward and backward.

Windows of a pooling are POOL×POOL; POOL = 1 is a layer without pooling, whose windows are the positions of z.
"""

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
def relu_pool(z, HAS_RELU: tl.constexpr, PLACES: tl.constexpr, WINDOWS: tl.constexpr, C: tl.constexpr):
    """P(R(z)), (WINDOWS, C), and the pooling indices, of z (PLACES · WINDOWS, C), row PLACES · window + place.

    Without R an index is the place of the maximum alone."""
    z = tl.reshape(z, (WINDOWS, PLACES, C))
    place = tl.arange(0, PLACES)[None, :, None]
    largest = tl.max(z, axis=1)  # eq. (4)
    index = tl.min(tl.where(z == largest[:, None, :], place, PLACES), axis=1)
    last_nan = tl.max(tl.where(z != z, place, -1), axis=1)  # NaN is a maximum, the last one counts
    if HAS_RELU:
        z_first = tl.sum(tl.where(place == 0, z, 0.0), axis=1)
        index = tl.where(largest > 0, index, tl.where(z_first == 0, AT_ZERO, INACTIVE))
        largest = tl.maximum(largest, 0.0)  # eq. (9)
    index = tl.where(last_nan >= 0, last_nan, index)
    return tl.where(last_nan >= 0, float("nan"), largest), index.to(tl.uint8)


@triton.jit
def is_in_image(i, j, H: tl.constexpr, W: tl.constexpr):
    """True for the pixels (i, j) of an image, False for those of its border."""
    return (i >= 0) & (i < H) & (j >= 0) & (j < W)


@triton.jit
def window_of(i, j, Z_H: tl.constexpr, Z_W: tl.constexpr, POOL: tl.constexpr):
    """The window of position (i, j) of z, as a number in its image; the place in it; and False outside of windows."""
    window = (i // POOL) * (Z_W // POOL) + j // POOL
    place = (i % POOL) * POOL + j % POOL
    return window, place, (i < Z_H // POOL * POOL) & (j < Z_W // POOL * POOL)


@triton.jit
def pooled_offset(n, window, k, WINDOWS: tl.constexpr, C: tl.constexpr, CHANNEL_MAJOR: tl.constexpr):
    """Offset of channel k of a window of image n: (N, WINDOWS, C), or (N, C, WINDOWS) with CHANNEL_MAJOR."""
    WINDOW: tl.constexpr = 1 if CHANNEL_MAJOR else C
    CHANNEL: tl.constexpr = WINDOWS if CHANNEL_MAJOR else 1
    return n * (WINDOWS * C) + window * WINDOW + k * CHANNEL


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
