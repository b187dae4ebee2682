"""The positions of a tile of ``conv2d_gather_gemm.py``, and how the tile is stored."""

import math

import triton
import triton.language as tl


@triton.constexpr_function
def gcd(a, b):
    """The greatest common divisor of two constants."""
    return math.gcd(int(a), int(b))


@triton.jit
def tile_positions(
    first, phase, M, PHASE_H, PHASE_W, OUT_H, OUT_W, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BACKWARD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The BM positions of a phase from ``first`` on: if they exist, n, i, j, the pixel of their first tap, and taps.

    The first tap is (p0, q0); there are num_p rows and num_q columns of taps."""
    m = first + tl.arange(0, BM)
    is_position = m < M
    j = m % PHASE_W
    i = (m // PHASE_W) % PHASE_H
    n = m // (PHASE_W * PHASE_H)
    if BACKWARD:
        phase_h = phase // STRIDE_W
        phase_w = phase % STRIDE_W
        TAP_STEP_H: tl.constexpr = STRIDE_H // gcd(STRIDE_H, DILATION_H)
        TAP_STEP_W: tl.constexpr = STRIDE_W // gcd(STRIDE_W, DILATION_W)
        p0 = KH + 0 * phase_h
        for p in tl.static_range(TAP_STEP_H):
            p0 = tl.where((p * DILATION_H) % STRIDE_H == (phase_h + PADDING_H) % STRIDE_H, min(p0, p), p0)
        q0 = KW + 0 * phase_w
        for q in tl.static_range(TAP_STEP_W):
            q0 = tl.where((q * DILATION_W) % STRIDE_W == (phase_w + PADDING_W) % STRIDE_W, min(q0, q), q0)
        num_p = tl.maximum(KH - p0 + TAP_STEP_H - 1, 0) // TAP_STEP_H
        num_q = tl.maximum(KW - q0 + TAP_STEP_W - 1, 0) // TAP_STEP_W
        # Whole wherever there is a tap. May be negative: the dividend is shifted, since division truncates.
        first_h = (phase_h + PADDING_H - p0 * DILATION_H + KH * DILATION_H * STRIDE_H) // STRIDE_H - KH * DILATION_H
        first_w = (phase_w + PADDING_W - q0 * DILATION_W + KW * DILATION_W * STRIDE_W) // STRIDE_W - KW * DILATION_W
        h = i + first_h
        v = j + first_w
        i = i * STRIDE_H + phase_h
        j = j * STRIDE_W + phase_w
        is_position = is_position & (i < OUT_H) & (j < OUT_W)
    else:
        p0 = 0
        q0 = 0
        num_p = KH
        num_q = KW
        h = i * STRIDE_H - PADDING_H
        v = j * STRIDE_W - PADDING_W
    h = tl.where(is_position, h, -0x40000000)  # outside of the image, whatever the tap
    return is_position, n, i, j, h, v, p0, q0, num_p, num_q


@triton.jit
def store_tile(
    y, acc, n, i, j, k, group, is_position, is_channel, OUT_H, OUT_W, K: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the sums at the positions (n, i, j) and the channels k of the group."""
    if WIDE:
        k = k.to(tl.int64)
    acc = acc.to(y.dtype.element_ty)
    if CHANNELS_LAST:
        y_at = (((n * OUT_H + i) * OUT_W + j) * (K * GROUPS) + group * K)[:, None] + k[None, :]
        tl.store(y + y_at, acc, mask=is_position[:, None] & is_channel[None, :])
    else:  # transposed, so that neighbouring threads store neighbouring positions
        y_at = ((group * K + k) * (OUT_H * OUT_W))[:, None] + ((n * (K * GROUPS * OUT_H) + i) * OUT_W + j)[None, :]
        tl.store(y + y_at, tl.trans(acc), mask=is_channel[:, None] & is_position[None, :])
