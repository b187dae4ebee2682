"""Convolution and the gradient of its input as one matrix product, whose first operand is gathered from the images.

For a correlation with padding P, stride s and dilation d, in PyTorch's letters:

    z[n, i, j, k]      = Σ_pqr x[n, s1·i − P1 + d1·p, s2·j − P2 + d2·q, r] w[k, p, q, r]                      (1)
    grad_x[n, t, u, r] = Σ_pqk g[n, (t + P1 − d1·p) / s1, (u + P2 − d2·q) / s2, k] w[k, p, q, r]              (2)

where the second sum has the p and q only for which the quotients are whole. For all t with the same t mod s1, a
phase, these are every (s1 / gcd(s1, d1))-th p from the first on, and the quotient falls by one fixed number from one
to the next. So in each phase (2) is a sum like (1), over fewer taps and with stride 1, and one kernel computes both.
A tap is a pair (p, q). The convolution of the formula sheet has its weights reversed beforehand.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.conv2d_outside import is_any_set, store_without_padding
from manualgrad.cuda.kernels.conv2d_positions import gcd, store_tile, tile_positions
from manualgrad.cuda.kernels.conv2d_products import multiply_add
from manualgrad.cuda.kernels.relu import relu, sign_of


@triton.jit
def sum_over_taps(
    x, w, h, v, x_at, w_at, is_channel, H, W, LOW, p0, q0, num_p, num_q, part,
    C: tl.constexpr, KW: tl.constexpr, W_ROW: tl.constexpr, X_PIXEL: tl.constexpr, X_CHANNEL: tl.constexpr,
    HOP_H: tl.constexpr, HOP_W: tl.constexpr, TAP_STEP_H: tl.constexpr, TAP_STEP_W: tl.constexpr,
    FLAT: tl.constexpr, JOINED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sum over num_p × num_q taps and C channels, or one of its PARTS: a tile BM × BN.

    Tap (i, j) reads x at the pixel (h + HOP_H·i, v + HOP_W·j) and w at (p0 + TAP_STEP_H·i, q0 + TAP_STEP_W·j).
    x_at is the offset of tap (0, 0) in x for each row of the tile, w_at that of each column's weights in w. FLAT
    joins taps and channels to one axis, for few channels, and computes each number's address; otherwise a block is BK
    channels of one tap. JOINED reads a column's weights, the zeros behind them too, in the order of that axis, which
    lets the hardware copy 16 bytes at a time."""
    block = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    if FLAT:
        total = num_p * num_q * C
        per_part = tl.cdiv(tl.cdiv(total, BK), PARTS)
        for step in range(part * per_part, min(tl.cdiv(total, BK), part * per_part + per_part)):
            e = step * BK + block
            c = e % C
            i = (e // C) // num_q
            j = (e // C) % num_q
            if WIDE:
                c = c.to(tl.int64)
                i = i.to(tl.int64)
            is_term = e < total
            row = h[:, None] + (i * HOP_H)[None, :]
            column = v[:, None] + (j * HOP_W)[None, :]
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & is_term[None, :]
            at = x_at[:, None] + ((i * HOP_H * W + j * HOP_W) * X_PIXEL + c * X_CHANNEL)[None, :]
            a = tl.load(x + at, mask=inside, other=0.0)
            if JOINED:
                w_e = e
                is_term = e < W_ROW
            else:
                w_e = ((p0 + i * TAP_STEP_H) * KW + q0 + j * TAP_STEP_W) * C + c
            b_pointers = w + (w_at[None, :] + w_e[:, None])
            b_mask = is_term[:, None] & is_channel[None, :]
            b = tl.load(b_pointers, mask=b_mask, other=0.0)
            b_low = tl.load(b_pointers + LOW, mask=b_mask, other=0.0) if PRECISION == "3xtf32" else b
            acc = multiply_add(a, b, b_low, acc, PRECISION)  # eq. (1), (2)
    else:
        BLOCKS: tl.constexpr = (C + BK - 1) // BK
        per_part = tl.cdiv(num_p * num_q * BLOCKS, PARTS)
        for step in range(part * per_part, min(num_p * num_q * BLOCKS, part * per_part + per_part)):
            c = (step % BLOCKS) * BK
            i = (step // BLOCKS) // num_q
            j = (step // BLOCKS) % num_q
            if WIDE:
                i = i.to(tl.int64)
            row = h + i * HOP_H
            column = v + j * HOP_W
            inside = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None]
            at = x_at + ((i * HOP_H * W + j * HOP_W) * X_PIXEL + c)
            tap = (p0 + i * TAP_STEP_H) * KW + q0 + j * TAP_STEP_W
            b_pointers = w + (w_at[None, :] + (tap * C + c + block)[:, None])
            if C % BK == 0:
                b_mask = is_channel[None, :]
            else:
                inside = inside & (c + block < C)[None, :]
                b_mask = is_channel[None, :] & (c + block < C)[:, None]
            a = tl.load(x + (at[:, None] + block[None, :]), mask=inside, other=0.0)
            b = tl.load(b_pointers, mask=b_mask, other=0.0)
            b_low = tl.load(b_pointers + LOW, mask=b_mask, other=0.0) if PRECISION == "3xtf32" else b
            acc = multiply_add(a, b, b_low, acc, PRECISION)  # eq. (1), (2)
    return acc


@triton.jit
def conv2d_gather_gemm(
    y, x, w, bias, sign, M, H, W, PHASE_H, PHASE_W, OUT_H, OUT_W, X_BATCH, LOW, FLAGS, NUM_FLAGS, PART_NUMEL,
    BIAS_STRIDE,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, W_ROW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BACKWARD: tl.constexpr,
    X_PIXEL: tl.constexpr, X_CHANNEL: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr, JOINED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAG_BLOCK: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """One tile of y, BM positions by BN channels, or one of PARTS parts of the sum of each number of it.

    x is (N, H, W, GROUPS·C) with the strides X_BATCH·X_PIXEL, W·X_PIXEL, X_PIXEL and X_CHANNEL; w is (GROUPS·K, KH,
    KW, C), each channel W_ROW numbers after the one before, with zeros in between, and its low parts follow LOW
    numbers later. y is (N, OUT_H, OUT_W, GROUPS·K), or without CHANNELS_LAST (N, GROUPS·K, OUT_H, OUT_W); the parts
    follow each other. Programs are (tiles, groups, phases·PARTS). A phase has PHASE_H × PHASE_W positions in an
    image, M in all. WIDE computes offsets in 64 bits. With a FLAG_BLOCK above 0 the NUM_FLAGS numbers of w at FLAGS
    are read, which are 0 if all weights are finite. With RELU, of a whole sum, y is its ReLU, and
    ``sign``, if given, the sign of what the sum is in y's dtype, in y's order."""
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    group = tl.program_id(1)
    part = tl.program_id(2) % PARTS
    phase = tl.program_id(2) // PARTS
    TILES_N: tl.constexpr = (K + BN - 1) // BN
    TAP_STEP_H: tl.constexpr = STRIDE_H // gcd(STRIDE_H, DILATION_H) if BACKWARD else 1
    TAP_STEP_W: tl.constexpr = STRIDE_W // gcd(STRIDE_W, DILATION_W) if BACKWARD else 1
    HOP_H: tl.constexpr = -(TAP_STEP_H * DILATION_H // STRIDE_H) if BACKWARD else DILATION_H
    HOP_W: tl.constexpr = -(TAP_STEP_W * DILATION_W // STRIDE_W) if BACKWARD else DILATION_W
    first = (tile // TILES_N) * BM
    first_channel = (tile % TILES_N).to(tl.int32) * BN
    if PARTS > 1:
        y += part * PART_NUMEL
    is_position, n, i, j, h, v, p0, q0, num_p, num_q = tile_positions(
        first, phase, M, PHASE_H, PHASE_W, OUT_H, OUT_W, KH, KW, STRIDE_H, STRIDE_W, PADDING_H, PADDING_W,
        DILATION_H, DILATION_W, BACKWARD, BM,
    )  # fmt: skip
    x_at = (n * X_BATCH + h * W + v) * X_PIXEL + group * C * X_CHANNEL  # a where(..., 0) would hide the alignment
    k = first_channel + tl.arange(0, BN)
    is_channel = k < K
    w_at = (group * K + tl.where(is_channel, k, 0)) * W_ROW
    acc = sum_over_taps(
        x, w, h, v, x_at, w_at, is_channel, H, W, LOW, p0, q0, num_p, num_q, part, C, KW, W_ROW, X_PIXEL, X_CHANNEL,
        HOP_H, HOP_W, TAP_STEP_H, TAP_STEP_W, FLAT, JOINED, WIDE, PRECISION, PARTS, BM, BN, BK,
    )  # fmt: skip
    if bias is not None:
        b = tl.load(bias + (group * K + k) * BIAS_STRIDE, mask=is_channel, other=0.0)
        acc += b.to(tl.float32)[None, :]  # eq. (17)
    if RELU:
        if sign is not None:
            sign_tile = sign_of(acc.to(y.dtype.element_ty).to(tl.float32))
            store_tile(
                sign, sign_tile, n, i, j, k, group, is_position, is_channel, OUT_H, OUT_W, K, GROUPS, CHANNELS_LAST,
                WIDE,
            )  # fmt: skip
        acc = relu(acc)
    store_tile(y, acc, n, i, j, k, group, is_position, is_channel, OUT_H, OUT_W, K, GROUPS, CHANNELS_LAST, WIDE)
    if FLAG_BLOCK > 0:
        if is_any_set(w + FLAGS, NUM_FLAGS, FLAG_BLOCK):
            tl.debug_barrier()  # the tile is stored again, after the products above
            store_without_padding(
                y, x, w, first, first_channel, group, phase, part, M, H, W, PHASE_H, PHASE_W, OUT_H, OUT_W, X_BATCH,
                LOW, C, K, GROUPS, KH, KW, W_ROW, STRIDE_H, STRIDE_W, PADDING_H, PADDING_W, DILATION_H, DILATION_W,
                BACKWARD, X_PIXEL, X_CHANNEL, CHANNELS_LAST, HOP_H, HOP_W, TAP_STEP_H, TAP_STEP_W, WIDE, PRECISION,
                PARTS, BM, BN,
            )  # fmt: skip
