"""Max-pooling, equation (4), and P⁻¹ of section 4.2, alone and with ReLU, equations (9) and (10).

A program computes BLOCK results in the order of their memory. Image sizes, channels and windows are constants of the
compiled kernel, so that indices are divided by constants; the batch size is none.
"""

import triton
import triton.language as tl

from manualgrad.pool_index import AT_ZERO, INACTIVE

_AT_ZERO: tl.constexpr = tl.constexpr(AT_ZERO)
_INACTIVE: tl.constexpr = tl.constexpr(INACTIVE)


@triton.jit
def _split(i, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(n, h, w, c) of the i-th number of images, in channels_last or contiguous memory."""
    if CHANNELS_LAST:
        c, w, h, n = i % C, (i // C) % W, (i // (C * W)) % H, i // (C * W * H)
    else:
        w, h, c, n = i % W, (i // W) % H, (i // (W * H)) % C, i // (C * W * H)
    return n, h, w, c


@triton.jit
def _take(best, index, x, at, h, w, inside, place, H: tl.constexpr, W: tl.constexpr, sh, sw):
    """Maximum and pooling index with the pixel (h, w) of the window's image, which begins at ``at``."""
    is_pixel = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    value = tl.load(x + (at + h * sh + w * sw), mask=is_pixel, other=0.0).to(tl.float32)
    # NaN replaces a number, and a later NaN an earlier one; the first pixel replaces padding, even if it is -inf
    is_new_maximum = is_pixel & ((value > best) | (value != value) | (index < 0))
    return tl.where(is_new_maximum, value, best), tl.where(is_new_maximum, place, index)  # eq. (4)


@triton.jit
def max_pool2d_forward(
    out, pool_index, x, NUMEL, sn, sh, sw, sc, subgradient,
    H: tl.constexpr, W: tl.constexpr, H_OUT: tl.constexpr, W_OUT: tl.constexpr, C: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLLED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """P(x), or with RELU P(R(x)), and the pooling indices. x has the strides sn, sh, sw, sc."""
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    inside = i < NUMEL
    n, p, q, c = _split(i, H_OUT, W_OUT, C, CHANNELS_LAST)
    at, top, left = n * sn + c * sc, p * SH - TOP, q * SW - LEFT
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    index = tl.full([BLOCK], -1, tl.int32)
    if UNROLLED:
        for r in tl.static_range(KH):
            for s in tl.static_range(KW):
                best, index = _take(best, index, x, at, top + r * DH, left + s * DW, inside, r * KW + s, H, W, sh, sw)
    else:
        for r in range(KH):
            for s in range(KW):
                best, index = _take(best, index, x, at, top + r * DH, left + s * DW, inside, r * KW + s, H, W, sh, sw)
    index = tl.maximum(index, 0)  # a window of padding only
    if RELU:
        first = tl.load(x + (at + top * sh + left * sw), mask=inside, other=1.0).to(tl.float32)
        index = tl.where(best <= 0, tl.where(first == 0, _AT_ZERO, _INACTIVE), index)
        best = tl.where(best <= 0, 0.0, best)  # eq. (9)
    tl.store(out + i, best.to(out.dtype.element_ty), mask=inside)
    tl.store(pool_index + i, index.to(pool_index.dtype.element_ty), mask=inside)


@triton.jit
def _window(pixel, a, K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, OUT: tl.constexpr):
    """The a-th window along one dimension that has a pixel of the padded image, its place there, and if there is one.

    Places increase with a: gradients are added in the order of the formula."""
    if D == 1:
        window = pixel // S - a
        place = pixel - window * S
        exists = (window >= 0) & (window < OUT) & (place < K)
    else:
        start = pixel - a * D
        window, place = start // S, a + 0 * pixel
        exists = (start >= 0) & (window * S == start) & (window < OUT)
    return window, place, exists


@triton.jit
def _add(grad, g, pool_index, n, c, p, q, place, exists, subgradient, RELU: tl.constexpr,
         gn, gh, gw, gc, kn, kh, kw, kc):  # fmt: skip
    """``grad`` with the gradient of the window (p, q), if its maximum is at ``place``."""
    index = tl.load(pool_index + (n * kn + p * kh + q * kw + c * kc), mask=exists, other=0).to(tl.int32)
    g_pq = tl.load(g + (n * gn + p * gh + q * gw + c * gc), mask=exists, other=0.0).to(tl.float32)
    selected = tl.where(exists & (index == place), g_pq, 0.0)  # eq. (4); with RELU eq. (10), z > 0
    if RELU and subgradient != 0:
        selected = tl.where(
            exists & (index == _AT_ZERO) & (place == 0), g_pq * subgradient, selected
        )  # eq. (10), z = 0
    return grad + selected


@triton.jit
def max_pool2d_backward(
    grad_x, g, pool_index, NUMEL, gn, gh, gw, gc, kn, kh, kw, kc, subgradient,
    H: tl.constexpr, W: tl.constexpr, H_OUT: tl.constexpr, W_OUT: tl.constexpr, C: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLLED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """P⁻¹(g), or with RELU P⁻¹(g) R': each pixel adds the gradients of the windows that it is the maximum of.

    g has the strides gn, gh, gw, gc, and the pooling indices kn, kh, kw, kc."""
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    inside = i < NUMEL
    n, h, w, c = _split(i, H, W, C, CHANNELS_LAST)
    grad = tl.zeros([BLOCK], tl.float32)
    # windows along one dimension that can have a pixel
    ROWS: tl.constexpr = (KH + SH - 1) // SH if DH == 1 else KH
    COLUMNS: tl.constexpr = (KW + SW - 1) // SW if DW == 1 else KW
    if UNROLLED:
        for a in tl.static_range(ROWS):
            p, r, in_row = _window(h + TOP, a, KH, SH, DH, H_OUT)
            for b in tl.static_range(COLUMNS):
                q, s, in_column = _window(w + LEFT, b, KW, SW, DW, W_OUT)
                grad = _add(grad, g, pool_index, n, c, p, q, r * KW + s, inside & in_row & in_column, subgradient,
                            RELU, gn, gh, gw, gc, kn, kh, kw, kc)  # fmt: skip
    else:
        for a in range(ROWS):
            p, r, in_row = _window(h + TOP, a, KH, SH, DH, H_OUT)
            for b in range(COLUMNS):
                q, s, in_column = _window(w + LEFT, b, KW, SW, DW, W_OUT)
                grad = _add(grad, g, pool_index, n, c, p, q, r * KW + s, inside & in_row & in_column, subgradient,
                            RELU, gn, gh, gw, gc, kn, kh, kw, kc)  # fmt: skip
    tl.store(grad_x + i, grad.to(grad_x.dtype.element_ty), mask=inside)
