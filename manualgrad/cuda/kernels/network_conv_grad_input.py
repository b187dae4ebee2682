"""A convolution's input gradient, equation (20)."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.network_parts import pooled_offset, product, relu_pool_backward, window_of


@triton.jit
def conv_grad_input(
    grad_x, grad_out, pool_index, packed, N, H: tl.constexpr, W: tl.constexpr, C_IN: tl.constexpr,
    C_OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, Z_H: tl.constexpr, Z_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, POOL: tl.constexpr, CHANNEL_MAJOR: tl.constexpr,
    SUBGRADIENT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_x[n, p, r] = Σ_t Σ_k δ[n, p − t, k] packed[t, r, k], (N, H, W, C_IN): BP pixels p and BC channels r.

    δ is read from grad_out through pooling and ReLU. The formula leaves out products with a δ that is not there. Here
    it is 0, whose product with an infinite weight is NaN, so a tile with NaN is computed again without them."""
    WINDOWS: tl.constexpr = (Z_H // POOL) * (Z_W // POOL)
    K: tl.constexpr = KH * KW * C_OUT
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    r = tl.program_id(1) * BC + tl.arange(0, BC)
    n, y, x = pixel // (H * W), (pixel // W) % H, pixel % W
    g = tl.zeros((BP, BC), dtype=tl.float32)
    for k0 in tl.range(0, K, BK, num_stages=1):
        column = k0 + tl.arange(0, BK)
        t, k = column // C_OUT, column % C_OUT
        i = (y + TOP)[:, None] - (t // KW * DILATION_H)[None, :]
        j = (x + LEFT)[:, None] - (t % KW * DILATION_W)[None, :]
        inside = (n < N)[:, None] & (column < K)[None, :] & (i >= 0) & (j >= 0)
        if STRIDE_H * STRIDE_W > 1:
            inside &= (i % STRIDE_H == 0) & (j % STRIDE_W == 0)
            i, j = i // STRIDE_H, j // STRIDE_W
        window, place, is_pooled = window_of(i, j, Z_H, Z_W, POOL)
        at = pooled_offset(n[:, None], window, k[None, :], WINDOWS, C_OUT, CHANNEL_MAJOR)
        delta = relu_pool_backward(grad_out, pool_index, at, place, inside & is_pooled, SUBGRADIENT)
        at = (t * (C_IN * C_OUT) + k)[:, None] + (r * C_OUT)[None, :]
        w = tl.load(packed + at, mask=(column < K)[:, None] & (r < C_IN)[None, :], other=0.0)
        g += product(delta, w, PRECISION)  # eq. (20), ∂C/∂x
    at_grad_x, is_grad_x = pixel[:, None] * C_IN + r[None, :], (n < N)[:, None] & (r < C_IN)[None, :]
    tl.store(grad_x + at_grad_x, g, mask=is_grad_x)
    if tl.max((g != g).to(tl.int32)) != 0:
        tl.debug_barrier()  # the tile is stored again
        r0 = tl.program_id(1) * BC
        for channel in tl.range(r0, min(r0 + BC, C_IN), num_stages=1):  # one at a time, in few registers
            sums = tl.zeros((BP,), dtype=tl.float32)
            for column in tl.range(0, K, num_stages=1):
                t, k = column // C_OUT, column % C_OUT
                i, j = y + TOP - t // KW * DILATION_H, x + LEFT - t % KW * DILATION_W
                inside = (n < N) & (i >= 0) & (j >= 0) & (i % STRIDE_H == 0) & (j % STRIDE_W == 0)
                i, j = i // STRIDE_H, j // STRIDE_W
                inside &= (i < Z_H) & (j < Z_W)
                window, place, is_pooled = window_of(i, j, Z_H, Z_W, POOL)
                at = pooled_offset(n, window, k, WINDOWS, C_OUT, CHANNEL_MAJOR)
                delta = relu_pool_backward(grad_out, pool_index, at, place, inside & is_pooled, SUBGRADIENT)
                w = tl.load(packed + (t * C_IN + channel) * C_OUT + k)
                sums += tl.where(inside, delta * w, 0.0)  # eq. (20), ∂C/∂x
            tl.store(grad_x + pixel * C_IN + channel, sums, mask=n < N)
