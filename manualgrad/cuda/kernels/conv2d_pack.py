"""Copies of a convolution's operands in the order that its products read. Two operands take one launch."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.conv2d_products import INFINITY, split_operand
from manualgrad.cuda.kernels.relu import relu_gradient


@triton.jit
def store_split(pointers, b, LOW, mask, PRECISION: tl.constexpr):
    """Store the second operand of a product as ``multiply_add`` takes it, low parts LOW numbers after the others."""
    high, low = split_operand(b, PRECISION)
    tl.store(pointers, high, mask=mask)
    if PRECISION == "3xtf32":
        tl.store(pointers + LOW, low, mask=mask)


@triton.jit
def pack_weight(
    w, out, pid, W_K, W_C, W_P, W_Q, LOW, FLAGS, C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ROW: tl.constexpr, FLIP: tl.constexpr, TRANSPOSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Copy w (GROUPS·K, C, KH, KW) to (GROUPS·K, KH, KW, C), or with TRANSPOSE to (GROUPS·C, KH, KW, K).

    A row has ROW numbers, of which up to 15 are zeros at its end. W_* are the strides of w. FLIP reverses rows and
    columns of the kernel, as equations (1) and (2) do. With TRANSPOSE each program stores 1 at FLAGS + pid if one of
    its numbers is infinite or NaN, and 0 if none is."""
    TILES_C: tl.constexpr = (C + BC - 1) // BC
    TILES: tl.constexpr = TILES_C * ((K + BK - 1) // BK)
    tap = (pid // TILES) % (KH * KW)
    group = pid // (TILES * KH * KW)
    k = ((pid % TILES) // TILES_C) * BK + tl.arange(0, BK)
    c = (pid % TILES_C) * BC + tl.arange(0, BC)
    mask = (k < K)[:, None] & (c < C)[None, :]
    w_at = ((group * K + k) * W_K)[:, None] + (c * W_C)[None, :] + (tap // KW * W_P + tap % KW * W_Q)
    b = tl.load(w + w_at, mask=mask, other=0.0)
    if FLIP:
        tap = KH * KW - 1 - tap  # eq. (1), (2)
    if TRANSPOSE:
        is_finite = tl.abs(b.to(tl.float32)) < INFINITY
        tl.store(out + FLAGS + pid, tl.max(tl.where(is_finite, 0.0, 1.0)).to(out.dtype.element_ty))
        at = k[:, None] + ((group * C + c) * ROW + tap * K)[None, :]
    else:
        at = ((group * K + k) * ROW + tap * C)[:, None] + c[None, :]
    store_split(out + at, b, LOW, mask, PRECISION)
    NUMEL: tl.constexpr = KH * KW * (K if TRANSPOSE else C)
    if ROW > NUMEL:
        if tap == 0:
            row = group * C + c if TRANSPOSE else group * K + k
            is_row = c < C if TRANSPOSE else k < K
            column = NUMEL + tl.arange(0, 16)
            zeros = tl.zeros([BC if TRANSPOSE else BK, 16], b.dtype)
            inside = is_row[:, None] & (column < ROW)[None, :]
            store_split(out + (row * ROW)[:, None] + column[None, :], zeros, LOW, inside, PRECISION)


@triton.jit
def pack_image(
    x, out, pid, z, N, C, H, W, X_N, X_C, X_H, X_W, Z_N, Z_C, Z_H, Z_W, BC: tl.constexpr, BP: tl.constexpr,
    SUBGRADIENT: tl.constexpr,
):  # fmt: skip
    """Copy x (N, C, H, W), with the strides X_*, to (N, H, W, C): a tile of BC channels by BP pixels of one image.

    If z of x's shape, with the strides Z_*, is given, x is a gradient of R(z), and its copy the gradient of z; what
    may stand for z says ``relu_gradient``."""
    tiles_c = tl.cdiv(C, BC)
    tiles = tiles_c * tl.cdiv(H * W, BP)
    n = (pid // tiles).to(tl.int64)
    c = (pid % tiles_c) * BC + tl.arange(0, BC)
    pixel = ((pid % tiles) // tiles_c).to(tl.int64) * BP + tl.arange(0, BP)
    is_c = c < C
    is_pixel = pixel < H * W
    x_at = n * X_N + (c.to(tl.int64) * X_C)[:, None] + (pixel // W * X_H + pixel % W * X_W)[None, :]
    mask = is_c[:, None] & is_pixel[None, :]
    tile = tl.load(x + x_at, mask=mask, other=0.0)
    if z is not None:
        z_at = n * Z_N + (c.to(tl.int64) * Z_C)[:, None] + (pixel // W * Z_H + pixel % W * Z_W)[None, :]
        tile = relu_gradient(tile, tl.load(z + z_at, mask=mask, other=0), SUBGRADIENT)
    out_at = ((n * H * W + pixel) * C)[:, None] + c[None, :]
    tl.store(out + out_at, tl.trans(tile), mask=is_pixel[:, None] & is_c[None, :])


@triton.jit
def conv2d_pack(
    w_out, w, x_out, x, z, W_PROGRAMS, W_K, W_C, W_P, W_Q, LOW, FLAGS, N, X_CHANNELS, H, W, X_N, X_C, X_H, X_W,
    Z_N, Z_C, Z_H, Z_W,
    C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROW: tl.constexpr,
    FLIP: tl.constexpr, TRANSPOSE: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, BC: tl.constexpr, IMAGE_BC: tl.constexpr, IMAGE_BP: tl.constexpr, SUBGRADIENT: tl.constexpr,
):  # fmt: skip
    """:func:`pack_weight` in the first W_PROGRAMS programs, :func:`pack_image` in the others, if any."""
    pid = tl.program_id(0)
    if x is None:
        pack_weight(
            w, w_out, pid, W_K, W_C, W_P, W_Q, LOW, FLAGS, C, K, KH, KW, ROW, FLIP, TRANSPOSE, PRECISION, BK, BC
        )
    else:
        if pid < W_PROGRAMS:
            pack_weight(
                w, w_out, pid, W_K, W_C, W_P, W_Q, LOW, FLAGS, C, K, KH, KW, ROW, FLIP, TRANSPOSE, PRECISION, BK, BC
            )
        else:
            pack_image(
                x, x_out, pid - W_PROGRAMS, z, N, X_CHANNELS, H, W, X_N, X_C, X_H, X_W, Z_N, Z_C, Z_H, Z_W,
                IMAGE_BC, IMAGE_BP, SUBGRADIENT,
            )  # fmt: skip


@triton.jit
def conv2d_pack_images(
    a_out, a, b_out, b, A_PROGRAMS, N, A_CHANNELS, A_HEIGHT, A_WIDTH, A_N, A_C, A_H, A_W,
    B_CHANNELS, B_HEIGHT, B_WIDTH, B_N, B_C, B_H, B_W, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """:func:`pack_image` for a, and in the programs from A_PROGRAMS on for b."""
    pid = tl.program_id(0)
    if b is None:
        pack_image(a, a_out, pid, None, N, A_CHANNELS, A_HEIGHT, A_WIDTH, A_N, A_C, A_H, A_W, 0, 0, 0, 0, BC, BP, 0)
    else:
        if pid < A_PROGRAMS:
            pack_image(
                a, a_out, pid, None, N, A_CHANNELS, A_HEIGHT, A_WIDTH, A_N, A_C, A_H, A_W, 0, 0, 0, 0, BC, BP, 0
            )
        else:
            pack_image(
                b, b_out, pid - A_PROGRAMS, None, N, B_CHANNELS, B_HEIGHT, B_WIDTH, B_N, B_C, B_H, B_W, 0, 0, 0, 0,
                BC, BP, 0,
            )  # fmt: skip


@triton.jit
def transpose_batch(
    x, out, pid, z, N, NUMEL, X_N, Z_N, BATCH, LOW, SPLIT: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
    SUBGRADIENT: tl.constexpr,
):  # fmt: skip
    """Copy x (N, NUMEL), a row every X_N numbers, to (NUMEL, BATCH), zeros from N on: a tile of BL by BN.

    If z of x's shape, a row every Z_N numbers, is given, x is a gradient of R(z), and its copy the gradient of z.
    SPLIT is the precision for which ``store_split`` stores the numbers, "half" leaves them as they are."""
    tiles = tl.cdiv(NUMEL, BL)
    at = (pid % tiles).to(tl.int64) * BL + tl.arange(0, BL)
    n = (pid // tiles) * BN + tl.arange(0, BN)
    inside = at < NUMEL
    is_number = (n < N)[:, None] & inside[None, :]
    tile = tl.load(x + n.to(tl.int64)[:, None] * X_N + at[None, :], mask=is_number, other=0.0)
    if z is not None:
        z_tile = tl.load(z + n.to(tl.int64)[:, None] * Z_N + at[None, :], mask=is_number, other=0)
        tile = relu_gradient(tile, z_tile, SUBGRADIENT)
    mask = inside[:, None] & (n < BATCH)[None, :]
    store_split(out + at[:, None] * BATCH + n[None, :], tl.trans(tile), LOW, mask, SPLIT)


@triton.jit
def conv2d_batch_last(
    g_out, g, x_out, x, z, G_PROGRAMS, N, G_NUMEL, G_N, Z_N, X_NUMEL, X_N, BATCH, LOW,
    PRECISION: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, SUBGRADIENT: tl.constexpr,
):  # fmt: skip
    """:func:`transpose_batch` for g, and z if given, in the first G_PROGRAMS programs, and for x in the others.

    x is split."""
    pid = tl.program_id(0)
    if pid < G_PROGRAMS:
        transpose_batch(g, g_out, pid, z, N, G_NUMEL, G_N, Z_N, BATCH, 0, "half", BN, BL, SUBGRADIENT)
    else:
        transpose_batch(x, x_out, pid - G_PROGRAMS, None, N, X_NUMEL, X_N, 0, BATCH, LOW, PRECISION, BN, BL, 0)
