"""P(R(C(x, w) + b)) of images with one channel, equations (1), (4), (9) and (17), in one kernel.

With one input channel a convolution reads little and writes much, and its result is what costs: here it stays in
registers. The products are float32's own, without tensor cores: there are kH·kW terms only.
"""

import triton
import triton.language as tl

from manualgrad.pool_index import AT_ZERO, INACTIVE

_AT_ZERO: tl.constexpr = tl.constexpr(AT_ZERO)
_INACTIVE: tl.constexpr = tl.constexpr(INACTIVE)


@triton.jit
def _add_product(z, x, at, w):
    return z + tl.load(x + at).to(tl.float32)[:, None] * w[None, :]  # eq. (1)


@triton.jit
def _take(best, index, z, place: tl.constexpr):
    is_new_maximum = (z > best) | (z != z)  # NaN replaces a number, and a later NaN an earlier one
    return tl.where(is_new_maximum, z, best), tl.where(is_new_maximum, place, index)  # eq. (4)


@triton.jit
def conv_relu_pool_forward(
    out, pool_index, x, w, b, NUM_WINDOWS, H_OUT, W_OUT, C_OUT, xn, xh, xw, wk, wr, ws, b_step,
    KH: tl.constexpr, KW: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BM windows of 2 x 2 and BN channels: the four sums of each window at once, of which the largest is kept."""
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    m, k = program * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    window = tl.minimum(m, NUM_WINDOWS - 1)  # the last programs compute a window again and do not store it
    channel = tl.minimum(k, C_OUT - 1)
    q, p, n = window % W_OUT, (window // W_OUT) % H_OUT, window // (W_OUT * H_OUT)
    at = n * xn + 2 * p * xh + 2 * q * xw
    z00, z01 = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    z10, z11 = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    for r in range(KH):
        for s in tl.static_range(KW):
            w_r, w_s = (KH - 1 - r, KW - 1 - s) if FLIP else (r, s)
            w_rs = tl.load(w + channel * wk + w_r * wr + w_s * ws).to(tl.float32)
            z00 = _add_product(z00, x, at + r * xh + s * xw, w_rs)
            z01 = _add_product(z01, x, at + r * xh + (s + 1) * xw, w_rs)
            z10 = _add_product(z10, x, at + (r + 1) * xh + s * xw, w_rs)
            z11 = _add_product(z11, x, at + (r + 1) * xh + (s + 1) * xw, w_rs)
    if b is not None:
        bias = tl.load(b + channel * b_step).to(tl.float32)[None, :]
        z00, z01, z10, z11 = z00 + bias, z01 + bias, z10 + bias, z11 + bias  # eq. (17)
    best, index = z00, tl.zeros([BM, BN], tl.int32)
    best, index = _take(best, index, z01, 1)
    best, index = _take(best, index, z10, 2)
    best, index = _take(best, index, z11, 3)
    index = tl.where(best <= 0, tl.where(z00 == 0, _AT_ZERO, _INACTIVE), index)
    best = tl.where(best <= 0, 0.0, best)  # eq. (9)
    place = (m * C_OUT)[:, None] + k[None, :]
    mask = (m < NUM_WINDOWS)[:, None] & (k < C_OUT)[None, :]
    tl.store(out + place, best.to(out.dtype.element_ty), mask=mask)
    tl.store(pool_index + place, index.to(tl.uint8), mask=mask)
