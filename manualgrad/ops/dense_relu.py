r"""R(D(x, w) + b) as one Function: a layer of equation (16) with (6), (17) and (9), and the derivative 0 of R at 0.

    δ = g ∂R/∂z, which is g where R(z) > 0 and 0 elsewhere                       (10)
    ∂/∂x = δ wᵀ      ∂/∂w = xᵀ δ      ∂/∂b = Σ δ                                  (7), (8), (17)

With the derivative 0 at zero, R(z) > 0 is the same condition as z > 0, so z is not kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.dispatch import dispatched
from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.dense import (
    apply_dense,
    dense_apply,
    dense_grad_input_apply,
    dense_grad_weight_apply,
    dense_linear,
)
from manualgrad.ops.differentiable import differentiable, save_for_derivatives, sum_present
from manualgrad.ops.linear_maps import Apply
from manualgrad.ops.relu import relu_backward_apply
from manualgrad.ops.tracers import traceable


@dispatched
def dense_relu_forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """R(x wᵀ + b): x (N, in_features), w (out_features, in_features) to (N, out_features); NaN stays NaN."""
    return dense_linear(x, w, b).clamp_(min=0)  # eq. (6), (9), (17)


class DenseReLUFunction(Function):
    """R(x wᵀ + b). Saves x, w and its result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return dense_relu_forward(x, w, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _ = inputs
        needs_grad = ctx.needs_input_grad
        save_for_derivatives(ctx, x, w, output, needed=(needs_grad[1], needs_grad[0], True))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, r = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad
        delta = relu_backward_apply(g, r, 0)  # eq. (10)
        return (
            dense_grad_input_apply(delta, w) if needs_x else None,
            dense_grad_weight_apply(delta, x) if needs_w else None,
            grad_bias_apply(delta) if needs_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None) -> Tensor | None:
        x, w, r = ctx.saved_tensors
        z_t = sum_present(
            None if x_t is None else dense_apply(x_t, w, None),
            None if w_t is None else dense_apply(x, w_t, None),
            bias_jvp(b_t, r.shape),
        )
        return None if z_t is None else relu_backward_apply(z_t, r, 0)


dense_relu_apply: Apply = differentiable(DenseReLUFunction)


@traceable
def dense_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``relu(dense(...), subgradient=0)``, equal in value and gradient.

    Raises:
        TypeError, ValueError: as :func:`manualgrad.functional.dense` does.
    """
    return apply_dense(dense_relu_apply, input, weight, bias)
