r"""R(C(x, w) + b) as one Function: σ⁰ of equation (16) with (1), (17) and (9), and the derivative 0 of R at 0.

    δ = g ∂R/∂z, which is g where R(z) > 0 and 0 elsewhere                       (10)
    ∂/∂x = X(δ, w)      ∂/∂w = W(δ, x)      ∂/∂b = Σ δ                           (2), (3), (17)

With the derivative 0 at zero, R(z) > 0 is the same condition as z > 0, so z is not kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import free_saved_tensors
from manualgrad.dispatch import by_kernel, dispatched
from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.conv2d import (
    apply_conv2d,
    conv2d_apply,
    conv2d_backward,
    conv2d_forward_nchw,
    conv2d_grad_input_apply,
    conv2d_grad_weight_apply,
)
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.differentiable import autograd_inactive, differentiable, save_for_derivatives, sum_present
from manualgrad.ops.linear_maps import Apply
from manualgrad.ops.relu import relu_backward, relu_backward_apply
from manualgrad.ops.tracers import traceable


@dispatched
def conv_relu_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
    """R(C(x, w) + b): (N, C_out, H_out, W_out); NaN stays NaN."""
    return conv2d_forward_nchw(x, w, b, geometry).clamp_(min=0)  # eq. (9)


class ConvReLUFunction(Function):
    """R(C(x, w) + b). Saves x, w and its result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
        return conv_relu_forward(x, w, b, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, ctx.geometry = inputs
        needs_grad = ctx.needs_input_grad
        save_for_derivatives(ctx, x, w, output, needed=(needs_grad[1], needs_grad[0], True))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, r = ctx.saved_tensors
        needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
        if autograd_inactive():
            needs_grad = (needs_x, needs_w, needs_b)
            grads = by_kernel("conv_relu_backward", g, r, x, w, needs_grad, ctx.geometry)
            if grads is None:
                delta = relu_backward(g, r, 0)  # eq. (10)
                del r
                free_saved_tensors(ctx)  # R(z) is as large as δ and the gradient of x
                grads = conv2d_backward(delta, x, w, needs_grad, ctx.geometry)
            return *grads, None
        delta = relu_backward_apply(g, r, 0)  # eq. (10)
        return (
            conv2d_grad_input_apply(delta, w, ctx.geometry) if needs_x else None,
            conv2d_grad_weight_apply(delta, x, ctx.geometry) if needs_w else None,
            grad_bias_apply(delta) if needs_b else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, _: None) -> Tensor | None:
        x, w, r = ctx.saved_tensors
        z_t = sum_present(
            None if x_t is None else conv2d_apply(x_t, w, None, ctx.geometry),
            None if w_t is None else conv2d_apply(x, w_t, None, ctx.geometry),
            bias_jvp(b_t, r.shape),
        )
        return None if z_t is None else relu_backward_apply(z_t, r, 0)


conv_relu_apply: Apply = differentiable(ConvReLUFunction)


@traceable
def conv2d_relu(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """``relu(conv2d(...), subgradient=0)``, equal in value and gradient; ``options`` from stride to channels_last.

    Raises:
        TypeError, ValueError: as :func:`manualgrad.functional.conv2d` does.
    """
    return apply_conv2d(conv_relu_apply, input, weight, bias, options)
