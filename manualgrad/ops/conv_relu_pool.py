r"""P(R(C(x, w) + b)) as one Function: σ⁰ of equation (23) over (1), (17), (9) and (4).

Its formulas are those of the three operations. ``relu_pool.py`` says what is saved in place of z and R(z): one byte
for each window, its pooling index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.dispatch import by_kernel, chunk_numel, dispatched
from manualgrad.ops import checks
from manualgrad.ops.bias import bias_jvp, grad_bias, grad_bias_apply
from manualgrad.ops.conv2d import (
    conv2d_apply,
    conv2d_forward,
    conv2d_grad_input_apply,
    conv2d_grad_input_nchw,
    conv2d_grad_weight_and_bias,
    conv2d_grad_weight_apply,
    conv2d_grad_weight_oihw,
)
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry
from manualgrad.ops.differentiable import autograd_inactive, differentiable, save_for_derivatives, sum_present
from manualgrad.ops.layout import as_non_view, from_nchw, from_oihw, to_nchw
from manualgrad.ops.precision import cast_to_autocast_dtype
from manualgrad.ops.relu_pool import (
    relu_pool_backward,
    relu_pool_backward_apply,
    relu_pool_forward,
    relu_pool_jvp_apply,
)
from manualgrad.ops.tracers import traceable

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def conv_relu_pool_forward(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvReLUPoolGeometry
) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and its pooling indices, both (N, C_out, H_out, W_out)."""
    chunks = [
        relu_pool_forward(_convolve(x_chunk, w, b, geometry.convolution), geometry)
        for (x_chunk,) in batch_chunks(geometry, w.shape[0], x)
        if x_chunk is not None
    ]
    pooled, pool_index = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*chunks, strict=True))
    return to_nchw(pooled), to_nchw(pool_index)


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
    """C(x, w) + b, (N, H_out, W_out, C_out): by a kernel, or by the formula in its memory order, without a copy."""
    z = by_kernel("conv2d_forward_nchw", x, w, b, geometry)
    return conv2d_forward(from_nchw(x), from_oihw(w), b, geometry) if z is None else from_nchw(z)


@dispatched
def conv_relu_pool_backward(
    g: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    pool_index: Tensor,
    geometry: ConvReLUPoolGeometry,
    needs_grad: tuple[bool, bool, bool],
) -> Grads:
    """Gradients of x, w and b, None for those that ``needs_grad`` does not ask for.

    x may be None if w needs no gradient, and w if x needs none.
    """
    needs_x, needs_w, needs_b = needs_grad
    grads: list[Grads] = []
    for g_chunk, index_chunk, x_chunk in batch_chunks(geometry, g.shape[1], g, pool_index, x if needs_w else None):
        assert g_chunk is not None and index_chunk is not None  # as g and pool_index are not
        delta = relu_pool_backward(g_chunk, index_chunk, geometry)
        grad_x = None if w is None or not needs_x else conv2d_grad_input_nchw(delta, w, geometry.convolution)
        if x_chunk is not None and needs_b:
            grads.append((grad_x, *conv2d_grad_weight_and_bias(delta, x_chunk, geometry.convolution)))
            continue
        grad_w = None if x_chunk is None else conv2d_grad_weight_oihw(delta, x_chunk, geometry.convolution)
        grads.append((grad_x, grad_w, grad_bias(delta) if needs_b else None))
    if len(grads) == 1:
        return grads[0]
    grads_x, grads_w, grads_b = zip(*grads, strict=True)
    return torch.cat(grads_x) if needs_x else None, sum_present(*grads_w), sum_present(*grads_b)


def batch_chunks(
    geometry: ConvReLUPoolGeometry, out_channels: int, *tensors: Tensor | None
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield parts of the batches in ``tensors``, so small that z of one part has ``dispatch.chunk_numel`` numbers.

    None stays None in every part.
    """
    numel = chunk_numel(*tensors)
    if numel is None:
        return iter([tensors])
    images = max(1, numel // (out_channels * math.prod(geometry.pooling.input_size)))
    return zip(*(repeat(None) if t is None else torch.split(t, images) for t in tensors), strict=False)


# ---------------------------------------------------------------------------------------------- Functions


class ConvReLUPoolFunction(Function):
    """P(R(C(x, w) + b)) and its pooling indices. Saves x, w and the pooling indices, one byte for each result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvReLUPoolGeometry) -> tuple[Tensor, Tensor]:
        pooled, pool_index = conv_relu_pool_forward(x, w, b, geometry)
        return as_non_view(pooled), pool_index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, ctx.geometry = inputs
        pool_index = output[1]
        ctx.mark_non_differentiable(pool_index)
        ctx.shape = (x.shape[0], w.shape[0], *ctx.geometry.pooling.input_size)
        save_for_derivatives(ctx, x, w, pool_index, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0], True))

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, pool_index = ctx.saved_tensors
        needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
        needs_grad = (needs_x, needs_w, needs_b)
        if autograd_inactive():
            return *conv_relu_pool_backward(g, x, w, pool_index, ctx.geometry, needs_grad), None
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            grads = by_kernel("conv_relu_pool_backward", g, x, w, pool_index, ctx.geometry, needs_grad)
            if grads is not None:
                return *grads, None
        delta = relu_pool_backward_apply(g, pool_index, ctx.geometry)
        return (
            conv2d_grad_input_apply(delta, w, ctx.geometry.convolution) if needs_x else None,
            conv2d_grad_weight_apply(delta, x, ctx.geometry.convolution) if needs_w else None,
            grad_bias_apply(delta) if needs_b else None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, _: None
    ) -> tuple[Tensor | None, None]:
        x, w, pool_index = ctx.saved_tensors
        z_t = sum_present(
            None if x_t is None else conv2d_apply(x_t, w, None, ctx.geometry.convolution),
            None if w_t is None else conv2d_apply(x, w_t, None, ctx.geometry.convolution),
            bias_jvp(b_t, ctx.shape),
        )
        return None if z_t is None else relu_pool_jvp_apply(z_t, pool_index, ctx.geometry), None


conv_relu_pool_apply = differentiable(ConvReLUPoolFunction)


@traceable
def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    *,
    subgradient: float = 0.5,
    flip_kernel: bool = True,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)))`` with 2×2 windows, equal in value and gradient, ties and exact zeros included.

    It is faster than the three operations, and of their intermediate results it saves one byte for each result.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight, bias, stride, padding, flip_kernel: as for :func:`manualgrad.functional.conv2d`.
        subgradient: R'(0), as for :func:`manualgrad.functional.relu`.

    Returns:
        (N, C_out, H_out, W_out) or (C_out, H_out, W_out): half the rows and columns of the convolution, rounded down.

    Raises:
        TypeError, ValueError: as the three operations do.
    """
    checks.require_images("conv2d", input)
    checks.require_tensor("conv2d", "weight", weight)
    checks.require_fraction("relu", "subgradient", subgradient)
    input, weight, bias = cast_to_autocast_dtype(input, weight, bias)
    checks.require_floating("conv2d", input=input, weight=weight, bias=bias)
    geometry = make_conv_relu_pool_geometry(input, weight, bias, stride, padding, flip_kernel, subgradient)
    if input.dim() == 3:
        pooled: Tensor = conv_relu_pool_apply(input.unsqueeze(0), weight, bias, geometry)[0]
        return pooled.squeeze(0)
    pooled = conv_relu_pool_apply(input, weight, bias, geometry)[0]
    return pooled
