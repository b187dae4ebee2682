r"""P(R(C(x, w) + b)) as one Function: σ⁰ of equation (23) over (1), (17), (9) and (4).

Its formulas are those of the three operations. ``relu_pool.py`` says what is saved in place of z and R(z): one byte
for each window, its pooling index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.conv2d import conv2d_apply, conv2d_grad_input_apply, conv2d_grad_weight_apply
from manualgrad.ops.conv_relu_pool_dispatch import conv_relu_pool_backward, conv_relu_pool_forward, kernel_backward
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry
from manualgrad.ops.differentiable import autograd_inactive, differentiable, save_for_derivatives, sum_present
from manualgrad.ops.layout import as_non_view
from manualgrad.ops.precision import cast_to_autocast_dtype
from manualgrad.ops.relu_pool import relu_pool_backward_apply, relu_pool_jvp_apply
from manualgrad.ops.tracers import traceable


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
        if not torch.is_grad_enabled():
            compute = conv_relu_pool_backward if autograd_inactive() else kernel_backward
            grads = compute(g, x, w, pool_index, ctx.geometry, (needs_x, needs_w, needs_b))
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
