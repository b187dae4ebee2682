"""Depthwise convolution, one input channel for each group, and its gradients; without tensor cores.

With j = 0, 1, ... MULTIPLIER − 1 for the output channels k = MULTIPLIER·c + j of input channel c, the sums of
``conv2d_gather_gemm.py`` and ``conv2d_grad_weight.py`` have no sum over channels:

    z[n, i, j, k]      = Σ_pq x[n, s1·i − P1 + d1·p, s2·j − P2 + d2·q, c] w[k, p, q]                          (1)
    grad_x[n, t, u, c] = Σ_pqj g[n, (t + P1 − d1·p) / s1, (u + P2 − d2·q) / s2, k] w[k, p, q]                 (2)
    grad_w[k, p, q]    = Σ_nij g[n, i, j, k] x[n, s1·i − P1 + d1·p, s2·j − P2 + d2·q, c]                      (3)

Each number is read and written once but for the overlap of windows, which the caches serve: the time is that of
the memory. Tensors have any strides, which are arguments such as X_N, X_C, X_H, X_W. A tile is BM positions by BC
channels. FLIP reverses the kernel.
"""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.relu import relu, sign_of


@triton.jit
def tile_positions(BM: tl.constexpr, WIDTH, HEIGHT, WIDE: tl.constexpr):
    """The BM positions of a program as numbers, images, rows and columns."""
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    m = tile * BM + tl.arange(0, BM)
    return m, m // (WIDTH * HEIGHT), (m // WIDTH) % HEIGHT, m % WIDTH


@triton.jit
def tile_channels(tile, BC: tl.constexpr, WIDE: tl.constexpr):
    """The BC channels of a tile."""
    if WIDE:
        tile = tile.to(tl.int64)
    return tile * BC + tl.arange(0, BC)


@triton.jit
def conv2d_depthwise(
    y, x, w, bias, sign, M, H, W, OUT_H, OUT_W, X_N, X_C, X_H, X_W, W_K, W_P, W_Q, BIAS_STRIDE, Y_N, Y_C, Y_H, Y_W,
    CHANNELS,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    FLIP: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A tile of y, (N, CHANNELS, OUT_H, OUT_W) with M positions; with RELU its ReLU, and ``sign`` if given."""
    m, n, i, j = tile_positions(BM, OUT_W, OUT_H, WIDE)
    k = tile_channels(tl.program_id(1), BC, WIDE)
    is_m = m < M
    is_k = k < CHANNELS
    x_at = (n * X_N)[:, None] + (k // MULTIPLIER * X_C)[None, :]
    acc = tl.zeros([BM, BC], tl.float32)
    for p in range(KH):
        h = i * STRIDE_H - PADDING_H + p * DILATION_H
        row = KH - 1 - p if FLIP else p
        for q in tl.static_range(KW):
            v = j * STRIDE_W - PADDING_W + q * DILATION_W
            inside = is_m & (h >= 0) & (h < H) & (v >= 0) & (v < W)
            at = x_at + (h * X_H + v * X_W)[:, None]
            a = tl.load(x + at, mask=inside[:, None] & is_k[None, :], other=0.0)
            b = tl.load(w + k * W_K + row * W_P + (KW - 1 - q if FLIP else q) * W_Q, mask=is_k, other=0.0)
            acc += a.to(tl.float32) * b.to(tl.float32)[None, :]  # eq. (1)
    if bias is not None:
        acc += tl.load(bias + k * BIAS_STRIDE, mask=is_k, other=0.0).to(tl.float32)[None, :]  # eq. (17)
    y_at = (n * Y_N + i * Y_H + j * Y_W)[:, None] + (k * Y_C)[None, :]
    if RELU:
        if sign is not None:
            sign_tile = sign_of(acc.to(y.dtype.element_ty).to(tl.float32))
            tl.store(sign + y_at, sign_tile, mask=is_m[:, None] & is_k[None, :])
        acc = relu(acc)
    tl.store(y + y_at, acc.to(y.dtype.element_ty), mask=is_m[:, None] & is_k[None, :])


@triton.jit
def conv2d_depthwise_grad_input(
    grad_x, g, w, M, H, W, OUT_H, OUT_W, G_N, G_C, G_H, G_W, W_K, W_P, W_Q, X_N, X_C, X_H, X_W, CHANNELS,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    FLIP: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x, (N, CHANNELS, H, W) with M pixels."""
    m, n, t, u = tile_positions(BM, W, H, WIDE)
    c = tile_channels(tl.program_id(1), BC, WIDE)
    is_m = m < M
    is_c = c < CHANNELS
    acc = tl.zeros([BM, BC], tl.float32)
    for p in range(KH):
        i = t + PADDING_H - p * DILATION_H
        row = KH - 1 - p if FLIP else p
        is_row = is_m & (i >= 0) & (i % STRIDE_H == 0) & (i // STRIDE_H < OUT_H)
        for q in tl.static_range(KW):
            j = u + PADDING_W - q * DILATION_W
            inside = is_row & (j >= 0) & (j % STRIDE_W == 0) & (j // STRIDE_W < OUT_W)
            mask = inside[:, None] & is_c[None, :]
            for multiple in range(MULTIPLIER):
                k = c * MULTIPLIER + multiple
                at = (n * G_N + i // STRIDE_H * G_H + j // STRIDE_W * G_W)[:, None] + (k * G_C)[None, :]
                a = tl.load(g + at, mask=mask, other=0.0)
                b = tl.load(w + k * W_K + row * W_P + (KW - 1 - q if FLIP else q) * W_Q, mask=is_c, other=0.0)
                acc += tl.where(mask, a.to(tl.float32) * b.to(tl.float32)[None, :], 0.0)  # eq. (2)
    x_at = (n * X_N + t * X_H + u * X_W)[:, None] + (c * X_C)[None, :]
    tl.store(grad_x + x_at, acc.to(grad_x.dtype.element_ty), mask=is_m[:, None] & is_c[None, :])


@triton.jit
def conv2d_depthwise_grad_weight(
    grad_w, g, x, M, CHUNK, H, W, OUT_H, OUT_W, G_N, G_C, G_H, G_W, X_N, X_C, X_H, X_W, CHANNELS,
    MULTIPLIER: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    FLIP: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """TAPS of the KH·KW numbers of grad_w, (CHANNELS, KH, KW), for BC channels: the sum over CHUNK of M positions.

    It is the result, or one of PARTS parts of the sum, one after the other, in which the kernel is not reversed."""
    chunk = tl.program_id(1)
    tap = tl.program_id(2) * TAPS + tl.arange(0, TAPS)
    k = tile_channels(tl.program_id(0), BC, WIDE)
    is_k = k < CHANNELS
    is_tap = tap < KH * KW
    shift_h = tap // KW * DILATION_H - PADDING_H
    shift_w = tap % KW * DILATION_W - PADDING_W
    first = chunk * CHUNK
    if WIDE:
        first = chunk.to(tl.int64) * CHUNK
    last = min(M, first + CHUNK)
    acc = tl.zeros([TAPS, BM, BC], tl.float32)
    for m0 in range(first, last, BM):
        m = m0 + tl.arange(0, BM)
        n = m // (OUT_W * OUT_H)
        i = (m // OUT_W) % OUT_H
        j = m % OUT_W
        is_m = m < last
        g_at = (n * G_N + i * G_H + j * G_W)[:, None] + (k * G_C)[None, :]
        b = tl.load(g + g_at, mask=is_m[:, None] & is_k[None, :], other=0.0)
        h = (i * STRIDE_H)[None, :] + shift_h[:, None]
        v = (j * STRIDE_W)[None, :] + shift_w[:, None]
        inside = (is_m[None, :] & is_tap[:, None]) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        x_at = ((n * X_N)[None, :] + h * X_H + v * X_W)[:, :, None] + (k // MULTIPLIER * X_C)[None, None, :]
        a = tl.load(x + x_at, mask=inside[:, :, None] & is_k[None, None, :], other=0.0)
        acc += a.to(tl.float32) * b.to(tl.float32)[None, :, :]  # eq. (3)
    total = tl.sum(acc, axis=1)
    if PARTS > 1:
        grad_w += chunk * CHANNELS * KH * KW
    elif FLIP:
        tap = KH * KW - 1 - tap
    at = k[None, :] * (KH * KW) + tap[:, None]
    tl.store(grad_w + at, total.to(grad_w.dtype.element_ty), mask=is_tap[:, None] & is_k[None, :])
