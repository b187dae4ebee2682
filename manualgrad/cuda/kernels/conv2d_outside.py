"""Tiles of ``conv2d_gather_gemm.py`` for weights that are not finite: no product of a pixel outside of the images.

A tensor core multiplies these pixels as zeros, which gives NaN for an infinite or NaN weight. Such a tile is computed
once more after its products, so that products of finite weights wait for nothing, and need no register more.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.conv2d_positions import store_tile, tile_positions
from manualgrad.cuda.kernels.conv2d_products import INFINITY, round_to_tf32

FEW = tl.constexpr(8)  # channels that store_without_padding computes at a time, in few registers


@triton.jit
def is_any_set(flags, NUM_FLAGS, BLOCK: tl.constexpr):
    """True if one of the NUM_FLAGS numbers is not 0."""
    largest = 0.0
    for start in range(0, NUM_FLAGS, BLOCK):
        at = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.max(tl.load(flags + at, mask=at < NUM_FLAGS, other=0.0).to(tl.float32)))
    return largest != 0


@triton.jit
def sum_without_padding(
    x, w, h, v, x_at, w_at, is_channel, H, W, LOW, p0, q0, num_p, num_q, part,
    C: tl.constexpr, KW: tl.constexpr, X_PIXEL: tl.constexpr, X_CHANNEL: tl.constexpr,
    HOP_H: tl.constexpr, HOP_W: tl.constexpr, TAP_STEP_H: tl.constexpr, TAP_STEP_W: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """:func:`sum_over_taps` one term after another, without the products of pixels that are outside of x.

    A tensor core multiplies them by 0, which is NaN for a weight that is not finite. This takes far longer."""
    acc = tl.zeros([BM, BN], tl.float32)
    for term in tl.range(part, num_p * num_q * C, PARTS, num_stages=1):
        c = term % C
        i = (term // C) // num_q
        j = (term // C) % num_q
        if WIDE:
            c = c.to(tl.int64)
            i = i.to(tl.int64)
        row = h + i * HOP_H
        column = v + j * HOP_W
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
        at = x_at + ((i * HOP_H * W + j * HOP_W) * X_PIXEL + c * X_CHANNEL)
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if PRECISION == "tf32":
            a = round_to_tf32(a)
        b_pointers = w + (w_at + ((p0 + i * TAP_STEP_H) * KW + q0 + j * TAP_STEP_W) * C + c)
        b = tl.load(b_pointers, mask=is_channel, other=0.0).to(tl.float32)
        if PRECISION == "3xtf32":
            b_low = tl.load(b_pointers + LOW, mask=is_channel, other=0.0)
            b = tl.where(tl.abs(b) < INFINITY, b + b_low, b)
        acc += tl.where(inside[:, None], a[:, None] * b[None, :], 0.0)  # eq. (2)
    return acc


@triton.jit
def store_without_padding(
    y, x, w, first, first_channel, group, phase, part, M, H, W, PHASE_H, PHASE_W, OUT_H, OUT_W, X_BATCH, LOW,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, W_ROW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BACKWARD: tl.constexpr,
    X_PIXEL: tl.constexpr, X_CHANNEL: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HOP_H: tl.constexpr, HOP_W: tl.constexpr, TAP_STEP_H: tl.constexpr, TAP_STEP_W: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Store a tile of y, or a part of it, by :func:`sum_without_padding`, FEW channels at a time."""
    is_position, n, i, j, h, v, p0, q0, num_p, num_q = tile_positions(
        first, phase, M, PHASE_H, PHASE_W, OUT_H, OUT_W, KH, KW, STRIDE_H, STRIDE_W, PADDING_H, PADDING_W,
        DILATION_H, DILATION_W, BACKWARD, BM,
    )  # fmt: skip
    x_at = (n * X_BATCH + h * W + v) * X_PIXEL + group * C * X_CHANNEL
    for k0 in tl.range(first_channel, min(K, first_channel + BN), FEW, num_stages=1):
        k = k0 + tl.arange(0, FEW)
        is_channel = k < K
        w_at = (group * K + tl.where(is_channel, k, 0)) * W_ROW
        acc = sum_without_padding(
            x, w, h, v, x_at, w_at, is_channel, H, W, LOW, p0, q0, num_p, num_q, part, C, KW, X_PIXEL, X_CHANNEL,
            HOP_H, HOP_W, TAP_STEP_H, TAP_STEP_W, WIDE, PRECISION, PARTS, BM, FEW,
        )  # fmt: skip
        store_tile(y, acc, n, i, j, k, group, is_position, is_channel, OUT_H, OUT_W, K, GROUPS, CHANNELS_LAST, WIDE)
