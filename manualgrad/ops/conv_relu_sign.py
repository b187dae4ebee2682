r"""R(C(x, w) + b) as one Function with any derivative of R at 0: equation (16) with (1), (17) and (9).

    δ = g ∂R/∂z: g where z > 0, ½ g where z = 0, 0 where z < 0                   (10)
    ∂/∂x = X(δ, w)      ∂/∂w = W(δ, x)      ∂/∂b = Σ δ                           (2), (3), (17)

R(z) does not tell z = 0 from z < 0. The sign of z does, in one byte for each result, so neither z nor R(z) is kept.
With the derivative 0 at zero ``conv_relu.py`` needs R(z) alone, which the next layer keeps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import is_forward_mode_active
from manualgrad.dispatch import by_kernel, dispatched, has_kernel
from manualgrad.ops import checks
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
from manualgrad.ops.conv_relu import conv_relu_apply
from manualgrad.ops.differentiable import (
    autograd_inactive,
    differentiable,
    is_grad_recorded,
    save_for_derivatives,
    sum_present,
)
from manualgrad.ops.relu import relu_apply, relu_backward, relu_backward_apply


@dispatched
def conv_relu_sign_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> tuple[Tensor, Tensor]:
    """R(z) of z = C(x, w) + b, and the sign of z, int8, both (N, C_out, H_out, W_out).

    The sign is −1, 0 or 1, and 1 where z is NaN, whose derivative is that of a positive z. NaN stays NaN in R(z)."""
    z = conv2d_forward_nchw(x, w, b, geometry)
    sign = (~(z <= 0)).to(torch.int8) - (z < 0).to(torch.int8)
    return z.clamp_(min=0), sign  # eq. (9)


class ConvReLUSignFunction(Function):
    """R(C(x, w) + b) and the sign of its argument. Saves x, w and the sign, one byte for each result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry, subgradient: float
    ) -> tuple[Tensor, Tensor]:
        return conv_relu_sign_forward(x, w, b, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, ctx.geometry, ctx.subgradient = inputs
        sign, needs_grad = output[1], ctx.needs_input_grad
        ctx.mark_non_differentiable(sign)
        save_for_derivatives(ctx, x, w, sign, needed=(needs_grad[1], needs_grad[0], True))

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, sign = ctx.saved_tensors
        needs_x, needs_w, needs_b = needs_grad = ctx.needs_input_grad[:3]
        if autograd_inactive():
            grads = by_kernel("conv_relu_backward", g, sign, x, w, needs_grad, ctx.geometry, ctx.subgradient)
            if grads is None:
                delta = relu_backward(g, sign, ctx.subgradient)  # eq. (10)
                grads = conv2d_backward(delta, x, w, needs_grad, ctx.geometry)
            return *grads, None, None
        delta = relu_backward_apply(g, sign, ctx.subgradient)  # eq. (10)
        return (
            conv2d_grad_input_apply(delta, w, ctx.geometry) if needs_x else None,
            conv2d_grad_weight_apply(delta, x, ctx.geometry) if needs_w else None,
            grad_bias_apply(delta) if needs_b else None,
            None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, *_: None
    ) -> tuple[Tensor | None, None]:
        x, w, sign = ctx.saved_tensors
        z_t = sum_present(
            None if x_t is None else conv2d_apply(x_t, w, None, ctx.geometry),
            None if w_t is None else conv2d_apply(x, w_t, None, ctx.geometry),
            bias_jvp(b_t, sign.shape),
        )
        return None if z_t is None else relu_backward_apply(z_t, sign, ctx.subgradient), None


conv_relu_sign_apply = differentiable(ConvReLUSignFunction)


def conv2d_relu_with_subgradient(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], subgradient: float
) -> Tensor:
    """``relu(conv2d(...), subgradient=...)``; ``options`` from stride to channels_last.

    One operation where a kernel stores the sign of z, and these two calls elsewhere.

    Raises:
        TypeError, ValueError: as the two functions of :mod:`manualgrad.functional` do.
    """
    checks.require_fraction("relu", "subgradient", subgradient)

    def apply(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
        if not has_kernel("conv_relu_sign_forward", x, w, b, geometry):
            return relu_apply(conv2d_apply(x, w, b, geometry), subgradient)
        if subgradient == 0 or not _is_differentiated(x, w, b):
            return conv_relu_apply(x, w, b, geometry)
        r: Tensor = conv_relu_sign_apply(x, w, b, geometry, subgradient)[0]
        return r

    return apply_conv2d(apply, input, weight, bias, options)


def _is_differentiated(*tensors: Tensor | None) -> bool:
    return is_forward_mode_active() or (
        is_grad_recorded() and any(t is not None and t.requires_grad for t in tensors)
    )
