"""The gradient of a convolution's weight as a matrix product whose sum runs along the positions.

For a correlation with padding P, stride s and dilation d, in PyTorch's letters:

    grad_w[k, p, q, r] = Σ_nij g[n, i, j, k] x[n, s1·i − P1 + d1·p, s2·j − P2 + d2·q, r]                      (3)

A program computes a tile of it over a chunk of the positions, so that there are programs enough for the GPU. The
chunks are summed afterwards, always in the same order. The bias's gradient, the sum of g of equation (17), takes
BM channels a program in the same launch: those after the programs of the tiles.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.conv2d_products import multiply_add, split_operand


@triton.jit
def weight_offset(
    k, e, KH: tl.constexpr, KW: tl.constexpr, C: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr
):
    """Offset in grad_w of channel k and e = (p·KW + q)·C + r: (C_out, KH, KW, C) in memory, or (C_out, C, KH, KW).

    FLIP reverses both p and q, since the formula sheet's convolution does."""
    tap = e // C
    if FLIP:
        tap = KH * KW - 1 - tap
    at = k * (KH * KW * C) + (tap * C + e % C if CHANNELS_LAST else (e % C) * (KH * KW) + tap)
    return at


@triton.jit
def store_grad_weight(
    grad_w, acc, k, e, is_k, is_e, first, chunk, ROWS,
    KH: tl.constexpr, KW: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    FLIP: tl.constexpr,
):  # fmt: skip
    """Store a tile at the channels first + k: the result, or, if there are several, a part of the sum, (ROWS, e)."""
    if PARTS > 1:
        at = (chunk * ROWS + first + k)[:, None] * (KH * KW * C) + e[None, :]
    else:
        at = weight_offset((first + k)[:, None], e[None, :], KH, KW, C, CHANNELS_LAST, FLIP)
    tl.store(grad_w + at, acc.to(grad_w.dtype.element_ty), mask=is_k[:, None] & is_e[None, :])


@triton.jit
def store_grad_bias(grad_b, sums, k, is_k, first, chunk, ROWS, PARTS: tl.constexpr):
    """Store the sums of the channels first + k: the result, or a part of it."""
    at = first + k
    if PARTS > 1:
        at += chunk * ROWS
    tl.store(grad_b + at, sums.to(grad_b.dtype.element_ty), mask=is_k)


@triton.jit
def conv2d_grad_weight(
    grad_w, grad_b, g, x, M, CHUNK, H, W, OUT_H, OUT_W, G_BATCH, X_BATCH,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    G_PIXEL: tl.constexpr, X_PIXEL: tl.constexpr, X_CHANNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of grad_w, BM of K channels by BN of KH·KW·C, over CHUNK of the M positions of z.

    g is (N, OUT_H, OUT_W, GROUPS·K) and x (N, H, W, GROUPS·C), with strides as ``conv2d_gather_gemm`` has them."""
    E: tl.constexpr = KH * KW * C
    TILES_N: tl.constexpr = (E + BN - 1) // BN
    TILES: tl.constexpr = TILES_N * ((K + BM - 1) // BM)
    tile = tl.program_id(0)
    chunk = tl.program_id(1)
    group = tl.program_id(2)
    first = chunk * CHUNK
    if WIDE:
        first = chunk.to(tl.int64) * CHUNK
    last = min(M, first + CHUNK)
    if grad_b is not None:
        if tile >= TILES:
            k = (tile - TILES) * BM + tl.arange(0, BM)
            is_k = k < K
            total = tl.zeros([BK, BM], tl.float32)
            for m0 in range(first, last, BK):
                m = m0 + tl.arange(0, BK)
                pixel = m // (OUT_W * OUT_H) * G_BATCH + m % (OUT_W * OUT_H)
                g_at = (pixel * G_PIXEL + group * K)[:, None] + k[None, :]
                mask = (m < last)[:, None] & is_k[None, :]
                total += tl.load(g + g_at, mask=mask, other=0.0).to(tl.float32)  # eq. (17)
            store_grad_bias(grad_b, tl.sum(total, 0), k, is_k, group * K, chunk, GROUPS * K, PARTS)
            return
    k = (tile // TILES_N) * BM + tl.arange(0, BM)
    e = (tile % TILES_N) * BN + tl.arange(0, BN)
    is_k = k < K
    is_e = e < E
    if C % BN == 0:  # the whole tile belongs to one tap: one mask and one offset for each position
        TILES_C: tl.constexpr = C // BN
        p = ((tile % TILES_N) // TILES_C) // KW
        q = ((tile % TILES_N) // TILES_C) % KW
        shift_h = p * DILATION_H - PADDING_H
        shift_w = q * DILATION_W - PADDING_W
        if WIDE:
            shift_h = shift_h.to(tl.int64)
        shift = (shift_h * W + shift_w) * X_PIXEL + group * C + (tile % TILES_C) * BN
    else:
        p = (e // C) // KW
        q = (e // C) % KW
        shift_h = p * DILATION_H - PADDING_H
        shift_w = q * DILATION_W - PADDING_W
        if WIDE:
            shift_h = shift_h.to(tl.int64)
        shift = (shift_h * W + shift_w) * X_PIXEL + (e % C + group * C) * X_CHANNEL
        shift_h = tl.where(is_e, shift_h, -0x40000000)  # outside of the image, whatever the position
    acc = tl.zeros([BM, BN], tl.float32)
    for m0 in range(first, last, BK):
        m = m0 + tl.arange(0, BK)
        is_m = m < last
        j = m % OUT_W
        i = (m // OUT_W) % OUT_H
        n = m // (OUT_W * OUT_H)
        g_at = (n * G_BATCH + i * OUT_W + j) * G_PIXEL + group * K
        a = tl.load(g + (g_at[:, None] + k[None, :]), mask=is_m[:, None] & is_k[None, :], other=0.0)
        h0 = tl.where(is_m, i * STRIDE_H, -0x40000000)
        v0 = j * STRIDE_W
        x_at = (n * X_BATCH + i * STRIDE_H * W + v0) * X_PIXEL
        if C % BN == 0:
            h = h0 + shift_h
            v = v0 + shift_w
            inside = ((h >= 0) & (h < H) & (v >= 0) & (v < W))[:, None]
            b = tl.load(x + ((x_at + shift)[:, None] + tl.arange(0, BN)[None, :]), mask=inside, other=0.0)
        else:
            h = h0[:, None] + shift_h[None, :]
            v = v0[:, None] + shift_w[None, :]
            inside = (h >= 0) & (h < H) & (v >= 0) & (v < W)
            b = tl.load(x + (x_at[:, None] + shift[None, :]), mask=inside, other=0.0)
        b, b_low = split_operand(b, PRECISION)
        acc = multiply_add(tl.trans(a), b, b_low, acc, PRECISION)  # eq. (3)
    store_grad_weight(
        grad_w, acc, k, e, is_k, is_e, group * K, chunk, GROUPS * K, KH, KW, C, PARTS, CHANNELS_LAST, FLIP
    )


@triton.jit
def conv2d_grad_weight_batch_last(
    grad_w, grad_b, g, x, TOTAL, CHUNK, H, W, OUT_W, NUM_BLOCKS, BATCH, G_PIXEL, G_CHANNEL, X_PIXEL, X_CHANNEL, LOW,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same tile from copies of g and x whose batch is the last, contiguous dimension, padded by zeros to BATCH.

    The sum runs along the contiguous axis, as it must for float32 in tensor cores, and a tap is one offset for all
    of a block: nothing is computed for each number. A pixel is *_PIXEL·BATCH numbers from the next, a channel
    *_CHANNEL·BATCH. A chunk is CHUNK of the TOTAL = OUT_H·OUT_W·NUM_BLOCKS blocks, each of BK images at one position.
    x is split as ``split_operand`` does, the low parts LOW numbers after the others."""
    E: tl.constexpr = KH * KW * C
    TILES_N: tl.constexpr = (E + BN - 1) // BN
    TILES: tl.constexpr = TILES_N * ((K + BM - 1) // BM)
    tile = tl.program_id(0)
    chunk = tl.program_id(1)
    group = tl.program_id(2)
    first = chunk * CHUNK
    last = min(TOTAL, first + CHUNK)
    if grad_b is not None:
        if tile >= TILES:
            k = (tile - TILES) * BM + tl.arange(0, BM)
            is_k = k < K
            channel = group * K + k
            if WIDE:
                channel = channel.to(tl.int64)
            total = tl.zeros([BM, BK], tl.float32)
            for step in range(first, last):
                position = step // NUM_BLOCKS
                if WIDE:
                    position = position.to(tl.int64)
                g_at = (channel * G_CHANNEL + position * G_PIXEL) * BATCH + (step % NUM_BLOCKS) * BK
                pointers = g + (g_at[:, None] + tl.arange(0, BK)[None, :])
                total += tl.load(pointers, mask=is_k[:, None], other=0.0).to(tl.float32)  # eq. (17)
            store_grad_bias(grad_b, tl.sum(total, 1), k, is_k, group * K, chunk, GROUPS * K, PARTS)
            return
    k = (tile // TILES_N) * BM + tl.arange(0, BM)
    e = (tile % TILES_N) * BN + tl.arange(0, BN)
    is_k = k < K
    is_e = e < E
    g_channel = group * K + k
    x_channel = group * C + e % C
    shift_h = (e // C) // KW * DILATION_H - PADDING_H
    shift_w = (e // C) % KW * DILATION_W - PADDING_W
    if WIDE:
        g_channel = g_channel.to(tl.int64)
        x_channel = x_channel.to(tl.int64)
    g_row = g_channel * G_CHANNEL * BATCH
    shift = ((shift_h * W + shift_w) * X_PIXEL + x_channel * X_CHANNEL) * BATCH
    shift_h = tl.where(is_e, shift_h, -0x40000000)  # outside of the image, whatever the position
    block = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for step in range(first, last):
        n = (step % NUM_BLOCKS) * BK
        position = step // NUM_BLOCKS
        i = position // OUT_W
        j = position % OUT_W
        h = i * STRIDE_H + shift_h
        v = j * STRIDE_W + shift_w
        pixel = i * STRIDE_H * W + j * STRIDE_W
        if WIDE:
            position = position.to(tl.int64)
            pixel = pixel.to(tl.int64)
        g_at = g_row + (position * G_PIXEL * BATCH + n)
        a = tl.load(g + (g_at[:, None] + block[None, :]), mask=is_k[:, None], other=0.0)
        inside = ((h >= 0) & (h < H) & (v >= 0) & (v < W))[None, :]
        x_pointers = x + ((shift + (pixel * X_PIXEL * BATCH + n))[None, :] + block[:, None])
        b = tl.load(x_pointers, mask=inside, other=0.0)
        b_low = tl.load(x_pointers + LOW, mask=inside, other=0.0) if PRECISION == "3xtf32" else b
        acc = multiply_add(a, b, b_low, acc, PRECISION)  # eq. (3)
    store_grad_weight(
        grad_w, acc, k, e, is_k, is_e, group * K, chunk, GROUPS * K, KH, KW, C, PARTS, CHANNELS_LAST, FLIP
    )
