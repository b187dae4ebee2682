"""Sums of the parts of gradients and of the loss, in a fixed order, and the update of the parameters."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.network_backward import store_grad


@triton.jit
def reduce_layer(
    pid, parts, grad_weight, grad_bias, weight, bias, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    C_IN: tl.constexpr, FLIP: tl.constexpr, UPDATE: tl.constexpr, BLOCK: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """BLOCK numbers of a gradient: the sum of its PARTS parts, BS at a time.

    A convolution's part has ROWS rows (t, r) and COLUMNS channels k, then a row of the bias; the weight's layout is
    (k, r, tap). C_IN = 0: a part of a dense layer has the weight's ROWS·COLUMNS numbers, then the bias's COLUMNS."""
    SIZE: tl.constexpr = (ROWS + 1) * COLUMNS
    e = pid * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, BS)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for s0 in range(0, PARTS, BS):
        ok = ((s0 + s) < PARTS)[:, None] & (e < SIZE)[None, :]
        sums += tl.sum(tl.load(parts + (s0 + s)[:, None] * SIZE + e[None, :], mask=ok, other=0.0), axis=0)
    is_bias = e >= ROWS * COLUMNS
    if C_IN == 0:
        at = e
    else:
        TAPS: tl.constexpr = ROWS // C_IN
        row, k = e // COLUMNS, e % COLUMNS
        t, r = row // C_IN, row % C_IN
        at = (k * C_IN + r) * TAPS + (TAPS - 1 - t if FLIP else t)
    store_grad(grad_weight, weight, at, sums, (e < SIZE) & (is_bias == 0), UPDATE)  # eq. (21)
    store_grad(grad_bias, bias, e - ROWS * COLUMNS, sums, (e < SIZE) & is_bias, UPDATE)  # eq. (18)


@triton.jit
def reduce(
    parts, grad_weight, grad_bias, weight, bias, other_parts, other_grad_weight, other_grad_bias, other_weight,
    other_bias, losses, num_labels, loss, N, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, C_IN: tl.constexpr, FLIP: tl.constexpr, OTHER_PROGRAMS: tl.constexpr,
    OTHER_PARTS: tl.constexpr, OTHER_ROWS: tl.constexpr, OTHER_COLUMNS: tl.constexpr, OTHER_C_IN: tl.constexpr,
    OTHER_FLIP: tl.constexpr, LOSS_PROGRAMS: tl.constexpr, UPDATE: tl.constexpr, BLOCK: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """Gradients of two layers, PROGRAMS and OTHER_PROGRAMS, and the loss in one more program with LOSS_PROGRAMS."""
    pid = tl.program_id(0)
    if PROGRAMS > 0:
        if pid < PROGRAMS:
            reduce_layer(
                pid, parts, grad_weight, grad_bias, weight, bias, PARTS, ROWS, COLUMNS, C_IN, FLIP, UPDATE, BLOCK, BS
            )
    if OTHER_PROGRAMS > 0:
        if (pid >= PROGRAMS) & (pid < PROGRAMS + OTHER_PROGRAMS):
            reduce_layer(
                pid - PROGRAMS, other_parts, other_grad_weight, other_grad_bias, other_weight, other_bias,
                OTHER_PARTS, OTHER_ROWS, OTHER_COLUMNS, OTHER_C_IN, OTHER_FLIP, UPDATE, BLOCK, BS,
            )  # fmt: skip
    if LOSS_PROGRAMS > 0:
        if pid == PROGRAMS + OTHER_PROGRAMS:
            sums = tl.zeros((256,), dtype=tl.float32)
            for n0 in range(0, N, 256):
                n = n0 + tl.arange(0, 256)
                sums += tl.load(losses + n, mask=n < N, other=0.0)
            tl.store(loss, tl.sum(sums, axis=0) / tl.load(num_labels).to(tl.float32))  # eq. (13)
