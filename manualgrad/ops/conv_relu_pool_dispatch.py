"""P(R(C(x, w) + b)) and its first derivative on plain tensors: by a kernel if one supports them, else by formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool_guard as kernels
from manualgrad.cpu import conv_pool_operators
from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops.bias import grad_bias
from manualgrad.ops.conv2d import conv2d_forward, conv2d_grad_input_nchw, conv2d_grad_weight_oihw
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry
from manualgrad.ops.differentiable import sum_present
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw
from manualgrad.ops.relu_pool import relu_pool_backward, relu_pool_forward

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
Needs = tuple[bool, bool, bool]  # which gradients of x, w and b to compute

CHUNK_NUMEL = 64 * 16 * 24 * 24  # numbers of z that the formulas compute at a time: 2.4 MB in float32


def conv_relu_pool_forward(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvReLUPoolGeometry
) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and its pooling indices, both (N, C_out, H_out, W_out)."""
    if torch.compiler.is_compiling() and kernels.supports_traced(geometry, x, w, b):
        result: tuple[Tensor, Tensor] = forward_operator(x, w, b, geometry.convolution.flip_kernel)
        return result
    by_kernel = kernels.try_forward(x, w, b, geometry)
    if by_kernel is not None:
        return by_kernel
    chunks = [
        relu_pool_forward(conv2d_forward(from_nchw(x_chunk), from_oihw(w), b, geometry.convolution), geometry)
        for (x_chunk,) in batch_chunks(geometry, w.shape[0], x)
        if x_chunk is not None
    ]
    pooled, pool_index = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*chunks, strict=True))
    return to_nchw(pooled), to_nchw(pool_index)


def conv_relu_pool_backward(
    g: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    pool_index: Tensor,
    geometry: ConvReLUPoolGeometry,
    needs_grad: Needs,
) -> Grads:
    """Gradients of x, w and b, None for those that ``needs_grad`` does not ask for.

    x may be None if w needs no gradient, and w if x needs none.
    """
    by_kernel = kernel_backward(g, x, w, pool_index, geometry, needs_grad)
    if by_kernel is not None:
        return by_kernel
    x, w = x if needs_grad[1] else None, w if needs_grad[0] else None
    chunks = [
        formula_backward(g_chunk, x_chunk, w, index_chunk, geometry, needs_grad[2])
        for g_chunk, index_chunk, x_chunk in batch_chunks(geometry, g.shape[1], g, pool_index, x)
        if g_chunk is not None and index_chunk is not None
    ]
    if len(chunks) == 1:
        return chunks[0]
    grads_x, grads_w, grads_b = zip(*chunks, strict=True)
    return None if w is None else torch.cat(grads_x), sum_present(*grads_w), sum_present(*grads_b)


def kernel_backward(
    g: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    pool_index: Tensor,
    geometry: ConvReLUPoolGeometry,
    needs_grad: Needs,
) -> Grads | None:
    """:func:`conv_relu_pool_backward` by a kernel, or None if no kernel supports the arguments."""
    grads: Grads | None
    if not torch.compiler.is_compiling():
        grads = kernels.try_backward(g, x, w, pool_index, geometry, needs_grad[:2])
    elif not any(needs_grad[:2]) or not kernels.supports_traced(geometry, g, x, w):
        return None
    else:
        x_or_w = x if x is not None else w
        assert x_or_w is not None  # x may be None only if w's gradient is not needed, and w if x's is not
        channels = x_or_w.shape[1]
        x_shape = (g.shape[0], channels, *geometry.convolution.input_size)
        w_shape = (g.shape[1], channels, *geometry.convolution.windows.kernel_size)
        x, w = x if needs_grad[1] else None, w if needs_grad[0] else None
        flip_kernel, subgradient = geometry.convolution.flip_kernel, float(geometry.subgradient)
        grads = backward_operator(g, x, w, pool_index, x_shape, w_shape, flip_kernel, subgradient)
    if grads is None:
        return None
    grad_x, grad_w, grad_b = (grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True))
    return grad_x, grad_w, grad_b


def formula_backward(
    g: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    pool_index: Tensor,
    geometry: ConvReLUPoolGeometry,
    needs_bias_grad: bool,
) -> Grads:
    """Gradients of x (if w is given), of w (if x is given) and of b (if ``needs_bias_grad``) by the formulas."""
    delta = relu_pool_backward(g, pool_index, geometry)
    return (
        None if w is None else conv2d_grad_input_nchw(delta, w, geometry.convolution),
        None if x is None else conv2d_grad_weight_oihw(delta, x, geometry.convolution),
        grad_bias(delta) if needs_bias_grad else None,
    )


def batch_chunks(
    geometry: ConvReLUPoolGeometry, out_channels: int, *tensors: Tensor | None
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield chunks of the batches in ``tensors``, so small that z of one chunk fits into the CPU's caches.

    If a tensor is not plain or not on the CPU, there is one chunk. None stays None in every chunk.
    """
    if not all(t is None or (t.is_cpu and is_plain_tensor(t)) for t in tensors):
        return iter([tensors])
    images = max(1, CHUNK_NUMEL // (out_channels * math.prod(geometry.pooling.input_size)))
    return zip(*(repeat(None) if t is None else torch.split(t, images) for t in tensors), strict=False)


# ------------------------------------------------------------------------ operators of compiled graphs


def _operator_forward(x: Tensor, w: Tensor, b: Tensor | None, flip_kernel: bool) -> tuple[Tensor, Tensor]:
    return conv_relu_pool_forward(x, w, b, make_conv_relu_pool_geometry(x, w, b, 1, 0, flip_kernel, 0.5))


def _operator_backward(
    g: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    pool_index: Tensor,
    x_shape: list[int],
    w_shape: list[int],
    flip_kernel: bool,
    subgradient: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`conv_relu_pool_backward` with an empty tensor in place of None, as the operator's schema requires."""
    geometry = make_conv_relu_pool_geometry(
        g.new_empty(x_shape), g.new_empty(w_shape), None, 1, 0, flip_kernel, subgradient
    )
    needs_grad = (w is not None, x is not None, True)
    grad_x, grad_w, grad_b = conv_relu_pool_backward(g, x, w, pool_index, geometry, needs_grad)
    assert grad_b is not None  # needs_grad asks for it
    return (
        g.new_empty(0) if grad_x is None else grad_x,
        g.new_empty(0) if grad_w is None else grad_w.contiguous(),
        grad_b,
    )


forward_operator, backward_operator = conv_pool_operators.define_operators(_operator_forward, _operator_backward)
