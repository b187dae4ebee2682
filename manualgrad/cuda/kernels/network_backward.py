"""Gradients of a network's layers, as programs side by side in one launch; equations (18), (20), (21)."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.network_parts import (
    is_in_image,
    pooled_offset,
    product,
    relu,
    relu_pool_backward,
    window_of,
)


@triton.jit
def columns_of_image(
    pid, columns, grad_out, pool_index, packed, C_IN: tl.constexpr, C_OUT: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, Z_H: tl.constexpr, Z_W: tl.constexpr, POOL: tl.constexpr, CHANNEL_MAJOR: tl.constexpr,
    SUBGRADIENT: tl.constexpr, PARTS: tl.constexpr, POSITIONS: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """columns[position, (t, r)] = Σ_k δ[position, k] packed[t, r, k], which ``first_grad_weight`` adds up.

    A program computes POSITIONS positions of δ of one image, and 1/PARTS of the columns."""
    WINDOWS: tl.constexpr = (Z_H // POOL) * (Z_W // POOL)
    COLUMNS: tl.constexpr = KH * KW * C_IN
    TILES: tl.constexpr = (Z_H * Z_W + POSITIONS - 1) // POSITIONS
    SHARE: tl.constexpr = (COLUMNS + PARTS * BN - 1) // (PARTS * BN) * BN
    n = pid // (PARTS * TILES)
    position = (pid // PARTS) % TILES * POSITIONS + tl.arange(0, POSITIONS)
    lo = (pid % PARTS) * SHARE
    hi = tl.minimum(lo + SHARE, COLUMNS)
    window, place, is_pooled = window_of(position // Z_W, position % Z_W, Z_H, Z_W, POOL)
    window, place, is_pooled = window[:, None], place[:, None], is_pooled[:, None]
    inside = (position < Z_H * Z_W)[:, None]
    ka = tl.arange(0, 16)[None, :]  # 16 channels a product; the first 32 stay in registers
    at = pooled_offset(n, window, ka, WINDOWS, C_OUT, CHANNEL_MAJOR)
    da = relu_pool_backward(grad_out, pool_index, at, place, is_pooled & (ka < C_OUT), SUBGRADIENT)
    if C_OUT > 16:
        at = pooled_offset(n, window, 16 + ka, WINDOWS, C_OUT, CHANNEL_MAJOR)
        db = relu_pool_backward(grad_out, pool_index, at, place, is_pooled & (16 + ka < C_OUT), SUBGRADIENT)
    k = tl.arange(0, 16)[:, None]
    for c0 in tl.range(lo, hi, BN, num_stages=1):
        c = c0 + tl.arange(0, BN)[None, :]
        w = tl.load(packed + c * C_OUT + k, mask=(c < COLUMNS) & (k < C_OUT), other=0.0)
        sums = product(da, w, PRECISION)  # eq. (20), ∂C/∂x
        if C_OUT > 16:
            w = tl.load(packed + c * C_OUT + 16 + k, mask=(c < COLUMNS) & (16 + k < C_OUT), other=0.0)
            sums += product(db, w, PRECISION)
        for k0 in tl.range(32, C_OUT, 16, num_stages=1):
            at_k = pooled_offset(n, window, k0 + ka, WINDOWS, C_OUT, CHANNEL_MAJOR)
            d = relu_pool_backward(grad_out, pool_index, at_k, place, is_pooled & (k0 + ka < C_OUT), SUBGRADIENT)
            w = tl.load(packed + c * C_OUT + k0 + k, mask=(c < COLUMNS) & (k0 + k < C_OUT), other=0.0)
            sums += product(d, w, PRECISION)
        at_columns = (n * (Z_H * Z_W) + position)[:, None] * COLUMNS + c
        tl.store(columns + at_columns, sums, mask=inside & (c < COLUMNS))


@triton.jit
def conv_grad_weight(
    pid, parts, grad_out, pool_index, x, N, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, Z_H: tl.constexpr, Z_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, IS_PADDED: tl.constexpr, POOL: tl.constexpr, CHANNEL_MAJOR: tl.constexpr,
    SUBGRADIENT: tl.constexpr, IS_IMAGE: tl.constexpr, PARTS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Part ``part`` of PARTS of Σ x[position + t, r] δ[position, k]: BT rows (t, r) and BC channels k.

    parts is (PARTS, ROWS + 1, C_OUT), where ROWS is KH·KW·C_IN; the last row is the sum of δ, the bias's gradient."""
    WINDOWS: tl.constexpr = (Z_H // POOL) * (Z_W // POOL)
    ROWS: tl.constexpr = KH * KW * C_IN
    TILES: tl.constexpr = (ROWS + BT) // BT
    C_TILES: tl.constexpr = (C_OUT + BC - 1) // BC
    PIECES: tl.constexpr = (Z_H * Z_W + BP - 1) // BP
    X_C: tl.constexpr = H * W if IS_IMAGE else 1
    X_W: tl.constexpr = 1 if IS_IMAGE else C_IN
    part = pid // (TILES * C_TILES)
    c = pid % TILES * BT + tl.arange(0, BT)
    k = (pid // TILES) % C_TILES * BC + tl.arange(0, BC)
    t = c // C_IN
    p, q = t // KW * DILATION_H, t % KW * DILATION_W
    column = (p * W + q) * X_W + (c % C_IN) * X_C
    sums = tl.zeros((BT, BC), dtype=tl.float32)
    for piece in tl.range(part, N * PIECES, PARTS, num_stages=STAGES):
        n = piece // PIECES
        position = (piece % PIECES) * BP + tl.arange(0, BP)
        i, j = position // Z_W, position % Z_W
        row = n * (H * W * C_IN) + ((i * STRIDE_H - TOP) * W + j * STRIDE_W - LEFT) * X_W
        inside = (position < Z_H * Z_W)[:, None] & (c < ROWS)[None, :]
        if IS_PADDED:
            i_x, j_x = i * STRIDE_H - TOP, j * STRIDE_W - LEFT
            inside &= is_in_image(i_x[:, None] + p[None, :], j_x[:, None] + q[None, :], H, W)
        patch = tl.load(x + row[:, None] + column[None, :], mask=inside, other=0.0)
        patch = tl.where((c == ROWS)[None, :], 1.0, patch)
        window, place, is_pooled = window_of(i, j, Z_H, Z_W, POOL)
        at = pooled_offset(n, window[:, None], k[None, :], WINDOWS, C_OUT, CHANNEL_MAJOR)
        is_pooled = is_pooled[:, None] & (k < C_OUT)[None, :]
        delta = relu_pool_backward(grad_out, pool_index, at, place[:, None], is_pooled, SUBGRADIENT)  # eq. (20)
        sums += product(tl.trans(patch), delta, PRECISION)  # eq. (18), (21), ∂C/∂w
    at = (part * (ROWS + 1) + c)[:, None] * C_OUT + k[None, :]
    tl.store(parts + at, sums, mask=(c <= ROWS)[:, None] & (k < C_OUT)[None, :])


@triton.jit
def dense_grad_weight(
    pid, parts, grad_weight, grad_bias, weight, bias, grad_out, x, N, IN: tl.constexpr, OUT: tl.constexpr,
    RELU_X: tl.constexpr, PARTS: tl.constexpr, UPDATE: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
    BB: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (BO, BI) of δᵀ x, or δᵀ R(x), and the sum of δ, over 1/PARTS of the images.

    With PARTS > 1 a part goes to parts, (PARTS, OUT·IN + OUT); otherwise the gradient is complete."""
    TILES_IN: tl.constexpr = (IN + BI - 1) // BI
    TILES: tl.constexpr = TILES_IN * ((OUT + BO - 1) // BO)
    tile = pid % TILES
    part = pid // TILES
    share = (N + PARTS - 1) // PARTS
    hi = tl.minimum((part + 1) * share, N)
    o = (tile // TILES_IN) * BO + tl.arange(0, BO)
    c = (tile % TILES_IN) * BI + tl.arange(0, BI)
    sums = tl.zeros((BO, BI), dtype=tl.float32)
    bias_sums = tl.zeros((BO,), dtype=tl.float32)
    for n0 in range(part * share, hi, BB):
        n = n0 + tl.arange(0, BB)
        d = tl.load(grad_out + n[:, None] * OUT + o[None, :], mask=(n < hi)[:, None] & (o < OUT)[None, :], other=0.0)
        x_tile = tl.load(x + n[:, None] * IN + c[None, :], mask=(n < hi)[:, None] & (c < IN)[None, :], other=0.0)
        if RELU_X:
            x_tile = relu(x_tile)  # eq. (16), σ = R
        bias_sums += tl.sum(d, axis=0)  # eq. (18)
        sums += product(tl.trans(d), x_tile, PRECISION)  # eq. (21), ∂D/∂w
    at, ok = o[:, None] * IN + c[None, :], (o < OUT)[:, None] & (c < IN)[None, :]
    if PARTS == 1:
        store_grad(grad_weight, weight, at, sums, ok, UPDATE)
        if tile % TILES_IN == 0:
            store_grad(grad_bias, bias, o, bias_sums, o < OUT, UPDATE)
    else:
        tl.store(parts + part * (OUT * IN + OUT) + at, sums, mask=ok)
        if tile % TILES_IN == 0:
            tl.store(parts + part * (OUT * IN + OUT) + OUT * IN + o, bias_sums, mask=o < OUT)


@triton.jit
def store_grad(grad, parameter, at, value, inside, UPDATE: tl.constexpr):
    """Store a gradient, or Δw where a factor −η is in it; with UPDATE also add it to the parameter."""
    tl.store(grad + at, value, mask=inside)
    if UPDATE:
        tl.store(parameter + at, tl.load(parameter + at, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def backward(
    columns, conv_parts, conv_grad_out, conv_pool_index, conv_x, conv_packed,
    dense_parts, dense_grad_weight_, dense_grad_bias, dense_weight, dense_bias, dense_grad_out, dense_x,
    last_parts, last_grad_weight, last_grad_bias, last_weight, last_bias, last_grad_out, last_x, N,
    COLUMN_PROGRAMS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, Z_H: tl.constexpr, Z_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    IS_PADDED: tl.constexpr, POOL: tl.constexpr, CHANNEL_MAJOR: tl.constexpr, SUBGRADIENT: tl.constexpr,
    IS_IMAGE: tl.constexpr, COLUMN_PARTS: tl.constexpr, POSITIONS: tl.constexpr, COLUMN_BN: tl.constexpr,
    CONV_PROGRAMS: tl.constexpr, CONV_PARTS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    STAGES: tl.constexpr, DENSE_PROGRAMS: tl.constexpr, DENSE_IN: tl.constexpr, DENSE_OUT: tl.constexpr,
    DENSE_RELU_X: tl.constexpr, DENSE_BO: tl.constexpr, DENSE_BI: tl.constexpr, LAST_PROGRAMS: tl.constexpr,
    LAST_IN: tl.constexpr, LAST_OUT: tl.constexpr, LAST_RELU_X: tl.constexpr, LAST_BO: tl.constexpr,
    LAST_BI: tl.constexpr, DENSE_PARTS: tl.constexpr, BB: tl.constexpr, UPDATE: tl.constexpr,
    CONV_PRECISION: tl.constexpr, DENSE_PRECISION: tl.constexpr,
):  # fmt: skip
    """One kind of program after the other, each as many as its *_PROGRAMS says: columns and weight gradient of one
    convolution, weight gradients of a dense layer and of the last one. None reads what another writes."""
    pid = tl.program_id(0)
    CONV_START: tl.constexpr = COLUMN_PROGRAMS
    DENSE_START: tl.constexpr = COLUMN_PROGRAMS + CONV_PROGRAMS
    LAST_START: tl.constexpr = COLUMN_PROGRAMS + CONV_PROGRAMS + DENSE_PROGRAMS
    if COLUMN_PROGRAMS > 0:
        if pid < CONV_START:
            columns_of_image(
                pid, columns, conv_grad_out, conv_pool_index, conv_packed, C_IN, C_OUT, KH, KW, Z_H, Z_W, POOL,
                CHANNEL_MAJOR, SUBGRADIENT, COLUMN_PARTS, POSITIONS, COLUMN_BN, CONV_PRECISION,
            )  # fmt: skip
    if CONV_PROGRAMS > 0:
        if (pid >= CONV_START) & (pid < DENSE_START):
            conv_grad_weight(
                pid - CONV_START, conv_parts, conv_grad_out, conv_pool_index, conv_x, N, H, W, C_IN, C_OUT, KH, KW,
                Z_H, Z_W, STRIDE_H, STRIDE_W, TOP, LEFT, DILATION_H, DILATION_W, IS_PADDED, POOL, CHANNEL_MAJOR,
                SUBGRADIENT, IS_IMAGE, CONV_PARTS, BT, BC, BP, STAGES, CONV_PRECISION,
            )  # fmt: skip
    if DENSE_PROGRAMS > 0:
        if (pid >= DENSE_START) & (pid < LAST_START):
            dense_grad_weight(
                pid - DENSE_START, dense_parts, dense_grad_weight_, dense_grad_bias, dense_weight, dense_bias,
                dense_grad_out, dense_x, N, DENSE_IN, DENSE_OUT, DENSE_RELU_X, DENSE_PARTS, UPDATE, DENSE_BO,
                DENSE_BI, BB, DENSE_PRECISION,
            )  # fmt: skip
    if LAST_PROGRAMS > 0:
        if pid >= LAST_START:
            dense_grad_weight(
                pid - LAST_START, last_parts, last_grad_weight, last_grad_bias, last_weight, last_bias, last_grad_out,
                last_x, N, LAST_IN, LAST_OUT, LAST_RELU_X, DENSE_PARTS, UPDATE, LAST_BO, LAST_BI, BB,
                DENSE_PRECISION,
            )  # fmt: skip
