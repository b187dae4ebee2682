"""The weight gradient of a first convolution with 2×2 pooling, from the columns of the next convolution."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.network_parts import at_place, product


@triton.jit
def image_patch(x, n, f, place: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr,
                KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Windows of x (N, C_IN, H, W) at one place of the pooling windows f: (ROWS, f), rows (t, r), then a row of 1."""
    QH: tl.constexpr = (H - KH + 1) // 2
    QW: tl.constexpr = (W - KW + 1) // 2
    row = tl.arange(0, ROWS)
    t, r = row // C_IN, row % C_IN
    i, j = 2 * (f // QW) + place // 2, 2 * (f % QW) + place % 2
    at = (n * (C_IN * H * W) + i * W + j)[None, :] + (r * (H * W) + (t // KW) * W + t % KW)[:, None]
    inside = (f < QH * QW)[None, :] & (row < KH * KW * C_IN)[:, None]
    return tl.where((row == KH * KW * C_IN)[:, None], 1.0, tl.load(x + at, mask=inside, other=0.0))


@triton.jit
def sum_of_columns(
    columns, n, f, k, t0, QH: tl.constexpr, QW: tl.constexpr, NEXT_KH: tl.constexpr, NEXT_KW: tl.constexpr,
    C_OUT: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """The sum of BT columns, taps from t0 on, of the channels k of the pooled numbers f of image n.

    One load of all: the taps lie in the middle dimension, so a thread adds up numbers that it has."""
    SH: tl.constexpr = QH - NEXT_KH + 1
    SW: tl.constexpr = QW - NEXT_KW + 1
    t = t0 + tl.arange(0, BT)
    di = (f // QW)[:, None] - (t // NEXT_KW)[None, :]
    dj = (f % QW)[:, None] - (t % NEXT_KW)[None, :]
    ok = (t < NEXT_KH * NEXT_KW)[None, :] & (f < QH * QW)[:, None]
    ok &= (di >= 0) & (di < SH) & (dj >= 0) & (dj < SW)
    at = (n * (SH * SW) + di * SW + dj) * (NEXT_KH * NEXT_KW * C_OUT) + (t * C_OUT)[None, :]
    mask = ok[:, :, None] & (k < C_OUT)[None, None, :]
    return tl.sum(tl.load(columns + at[:, :, None] + k[None, None, :], mask=mask, other=0.0), axis=1)  # eq. (20)


@triton.jit
def first_grad_weight(
    parts, columns, pool_index, x, N, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, NEXT_KH: tl.constexpr, NEXT_KW: tl.constexpr, SUBGRADIENT: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Part ``p`` of PARTS of the first convolution's weight gradient, from the columns of the next convolution.

    A program adds up the columns to the gradient of BP pooled numbers, sends them back through pooling and ReLU, and
    multiplies by the image's windows. parts is (PARTS, KH·KW·C_IN + 1, C_OUT), the last row is the bias's gradient.
    ROWS, BC and TAPS are the rows, C_OUT and the next kernel's size, padded to powers of two. BT columns of a pooled
    number are read at a time: with 32 numbers a program has no registers for all of them."""
    QH: tl.constexpr = (H - KH + 1) // 2
    QW: tl.constexpr = (W - KW + 1) // 2
    CHUNKS: tl.constexpr = (QH * QW + BP - 1) // BP
    part = tl.program_id(0)
    k = tl.arange(0, BC)
    sums = tl.zeros((ROWS, BC), dtype=tl.float32)
    for chunk in tl.range(part, N * CHUNKS, PARTS, num_stages=1):
        n = chunk // CHUNKS
        f = (chunk % CHUNKS) * BP + tl.arange(0, BP)
        x0 = image_patch(x, n, f, 0, H, W, C_IN, KH, KW, ROWS)
        x1 = image_patch(x, n, f, 1, H, W, C_IN, KH, KW, ROWS)
        x2 = image_patch(x, n, f, 2, H, W, C_IN, KH, KW, ROWS)
        x3 = image_patch(x, n, f, 3, H, W, C_IN, KH, KW, ROWS)
        inside = f < QH * QW
        at = (n * (QH * QW) + f)[:, None] * C_OUT + k[None, :]
        index = tl.load(pool_index + at, mask=inside[:, None] & (k < C_OUT)[None, :], other=255).to(tl.int32)
        if BT == TAPS:
            g = sum_of_columns(columns, n, f, k, 0, QH, QW, NEXT_KH, NEXT_KW, C_OUT, BT)
        else:
            g = tl.zeros((BP, BC), dtype=tl.float32)
            for t0 in tl.range(0, TAPS, BT, num_stages=1):
                g += sum_of_columns(columns, n, f, k, t0, QH, QW, NEXT_KH, NEXT_KW, C_OUT, BT)
        sums += product(x0, at_place(g, index, 0, SUBGRADIENT), PRECISION)  # eq. (18), (21), ∂C/∂w
        sums += product(x1, at_place(g, index, 1, SUBGRADIENT), PRECISION)
        sums += product(x2, at_place(g, index, 2, SUBGRADIENT), PRECISION)
        sums += product(x3, at_place(g, index, 3, SUBGRADIENT), PRECISION)
    row = tl.arange(0, ROWS)
    at = (part * (KH * KW * C_IN + 1) + row)[:, None] * C_OUT + k[None, :]
    tl.store(parts + at, sums, mask=(row <= KH * KW * C_IN)[:, None] & (k < C_OUT)[None, :])
