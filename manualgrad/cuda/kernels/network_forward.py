"""A network's forward pass: packed weights, convolutions with ReLU and pooling, dense layers; (16), (17)."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.network_parts import is_in_image, pooled_offset, product, relu, relu_pool


@triton.jit
def prepare(
    packed, weight, labels, num_labels, N, C_OUT: tl.constexpr, C_IN: tl.constexpr, TAPS: tl.constexpr,
    FLIP: tl.constexpr, HAS_LABELS: tl.constexpr, IGNORE_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """packed (TAPS, C_IN, C_OUT) of weight (C_OUT, C_IN, kH, kW): tap t is the one that meets place t of a window.

    The first program also counts the labels that are not to be ignored. C_OUT = 0: counts only."""
    if C_OUT > 0:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < TAPS * C_IN * C_OUT
        k, r, t = at % C_OUT, (at // C_OUT) % C_IN, at // (C_OUT * C_IN)
        tap = TAPS - 1 - t if FLIP else t  # a true convolution flips its kernel
        value = tl.load(weight + (k * C_IN + r) * TAPS + tap, mask=inside)
        tl.store(packed + at, value, mask=inside)
    if HAS_LABELS:
        if tl.program_id(0) == 0:
            count = tl.zeros((BLOCK,), dtype=tl.int32)
            for start in range(0, N, BLOCK):
                n = start + tl.arange(0, BLOCK)
                label = tl.load(labels + n, mask=n < N, other=IGNORE_INDEX)
                count += (label != IGNORE_INDEX).to(tl.int32)
            tl.store(num_labels, tl.sum(count, axis=0))


@triton.jit
def sum_in_parts(
    x, weight, row, i, j, is_row, channel, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, IS_PADDED: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """z (ROWS, BC) of :func:`conv_relu_pool_forward` without the bias, as SPLIT sums that one program adds up.

    Where it has SPLIT warps, each computes one of the sums, so that the steps in turn are 1/SPLIT as many."""
    K: tl.constexpr = KH * KW * C_IN
    STEPS: tl.constexpr = (K + SPLIT * BK - 1) // (SPLIT * BK)
    first = tl.arange(0, SPLIT)[:, None] * (STEPS * BK) + tl.arange(0, BK)[None, :]
    z = tl.zeros((SPLIT, ROWS, BC), dtype=tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        k = first + step * BK
        t, r = k // C_IN, k % C_IN
        p, q = t // KW * DILATION_H, t % KW * DILATION_W
        column = (p * W + q) * C_IN + r
        inside = is_row[None, :, None] & (k < K)[:, None, :]
        if IS_PADDED:
            inside &= is_in_image(i[None, :, None] + p[:, None, :], j[None, :, None] + q[:, None, :], H, W)
        patch = tl.load(x + row[None, :, None] + column[:, None, :], mask=inside, other=0.0)
        at = k[:, :, None] * C_OUT + channel[None, None, :]
        w = tl.load(weight + at, mask=(k < K)[:, :, None] & (channel < C_OUT)[None, None, :], other=0.0)
        z += product(patch, w, PRECISION)  # eq. (1), (17), f = C
    return tl.sum(z, axis=0)


@triton.jit
def conv_relu_pool_forward(
    out, pool_index, x, weight, bias, N, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, Z_H: tl.constexpr, Z_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, IS_PADDED: tl.constexpr, POOL: tl.constexpr, HAS_RELU: tl.constexpr,
    CHANNEL_MAJOR: tl.constexpr, FLIP: tl.constexpr, IS_IMAGE: tl.constexpr, WINDOWS: tl.constexpr,
    BC: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P(R(C(x, w) + b)) and the pooling indices, of Z_H // POOL by Z_W // POOL: WINDOWS windows and BC channels.

    With SPLIT > 1, which is for packed weights, the sum of a number of C is SPLIT sums.

    IS_IMAGE: x is (N, C_IN, H, W) and weight (C_OUT, C_IN, KH, KW); else x is (N, H, W, C_IN) and weight packed.
    C, whose output is Z_H by Z_W, has TOP rows and LEFT columns of zeros before the image."""
    QH: tl.constexpr = Z_H // POOL
    QW: tl.constexpr = Z_W // POOL
    PLACES: tl.constexpr = POOL * POOL
    X_C: tl.constexpr = H * W if IS_IMAGE else 1  # strides of x
    X_W: tl.constexpr = 1 if IS_IMAGE else C_IN
    K: tl.constexpr = KH * KW * C_IN
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    m = tl.arange(0, PLACES * WINDOWS)  # rows are PLACES · window + place, columns (tap, input channel)
    window = tl.program_id(0) * WINDOWS + m // PLACES
    n, u = window // (QH * QW), window % (QH * QW)
    i = (POOL * (u // QW) + (m % PLACES) // POOL) * STRIDE_H - TOP
    j = (POOL * (u % QW) + m % POOL) * STRIDE_W - LEFT
    row = n * (H * W * C_IN) + (i * W + j) * X_W
    if SPLIT > 1:
        z = sum_in_parts(
            x, weight, row, i, j, n < N, channel, H, W, C_IN, C_OUT, KH, KW, DILATION_H, DILATION_W, IS_PADDED,
            SPLIT, PLACES * WINDOWS, BC, BK, STAGES, PRECISION,
        )  # fmt: skip
    else:
        z = tl.zeros((PLACES * WINDOWS, BC), dtype=tl.float32)
        for k0 in tl.range(0, K, BK, num_stages=STAGES):
            k = k0 + tl.arange(0, BK)
            t, r = k // C_IN, k % C_IN
            p, q = t // KW * DILATION_H, t % KW * DILATION_W
            column = (p * W + q) * X_W + r * X_C
            inside = (n < N)[:, None] & (k < K)[None, :]
            if IS_PADDED:
                inside &= is_in_image(i[:, None] + p[None, :], j[:, None] + q[None, :], H, W)
            patch = tl.load(x + row[:, None] + column[None, :], mask=inside, other=0.0)
            if IS_IMAGE:
                tap = KH * KW - 1 - t if FLIP else t
                at = ((channel * (C_IN * KH * KW))[None, :]) + (r * (KH * KW) + tap)[:, None]
            else:
                at = k[:, None] * C_OUT + channel[None, :]
            w = tl.load(weight + at, mask=(k < K)[:, None] & (channel < C_OUT)[None, :], other=0.0)
            z += product(patch, w, PRECISION)  # eq. (1), (17), f = C
    z += tl.load(bias + channel, mask=channel < C_OUT, other=0.0)[None, :]
    pooled, index = relu_pool(z, HAS_RELU, PLACES, WINDOWS, BC)  # eq. (16), σ = P∘R
    window = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    n, u = window // (QH * QW), window % (QH * QW)
    at = pooled_offset(n[:, None], u[:, None], channel[None, :], QH * QW, C_OUT, CHANNEL_MAJOR)
    inside = (n < N)[:, None] & (channel < C_OUT)[None, :]
    tl.store(out + at, pooled, mask=inside)
    tl.store(pool_index + at, index, mask=inside)


@triton.jit
def dense_forward(
    out, x, weight, bias, N, IN: tl.constexpr, OUT: tl.constexpr, RELU_X: tl.constexpr, HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x wᵀ + b, or R(x) wᵀ + b: a tile of BM images and BN features over 1/PARTS of the inputs.

    x is (N, IN), weight (OUT, IN), out (PARTS, N, OUT): sums over a part of the inputs each, for ``head`` to add."""
    SHARE: tl.constexpr = (IN + PARTS * BK - 1) // (PARTS * BK) * BK
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    z = tl.zeros((BM, BN), dtype=tl.float32)
    for k0 in range(0, SHARE, BK):
        k = part * SHARE + k0 + tl.arange(0, BK)
        x_tile = tl.load(x + n[:, None] * IN + k[None, :], mask=(n < N)[:, None] & (k < IN)[None, :], other=0.0)
        if RELU_X:
            x_tile = relu(x_tile)  # eq. (16), σ = R
        w = tl.load(weight + o[None, :] * IN + k[:, None], mask=(k < IN)[:, None] & (o < OUT)[None, :], other=0.0)
        z += product(x_tile, w, PRECISION)  # eq. (6), (17), f = D
    if HAS_BIAS:
        z += tl.load(bias + o, mask=o < OUT, other=0.0)[None, :]
    tl.store(out + (part * N + n)[:, None] * OUT + o[None, :], z, mask=(n < N)[:, None] & (o < OUT)[None, :])
