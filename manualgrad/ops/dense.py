r"""Fully connected layer, equations (6), (7) and (8).

    D_j(x, w) = Σ_i x_i w_ij                                                     (6)
    ∂D_j/∂x_k = w_kj                                                             (7)
    ∂D_j/∂w_ck = x_c δ_jk                                                        (8)

For a batch, (6) is the matrix product x w. So are the sums that (7) and (8) lead to, δ wᵀ and xᵀ δ: one product is
its own derivative, with its operands turned, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.differentiable import differentiable, save, total
from manualgrad.ops.precision import autocast_lower


def dense_forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """D(x, w) + b: x (B, I), w (I, J), b (J,) to (B, J)."""
    if b is None:
        return torch.mm(x, w)  # eq. (6)
    return torch.addmm(b, x, w)  # eq. (6), (17)


class DenseFunction(Function):
    """D(x, wᵀ) + b of equations (6) and (17), for w (J, I), as a layer has it. Saves x for w's gradient, and w for
    x's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return dense_forward(x, w.t(), b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _ = inputs
        ctx.shape = output.shape
        save(ctx, x, w, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        for_x, for_w, for_b = ctx.needs_input_grad
        return (
            dense_apply(g, w.t(), None) if for_x else None,  # eq. (7)
            dense_apply(g.t(), x.t(), None) if for_w else None,  # eq. (8), δᵀx: rounds less than xᵀδ where B is large
            grad_bias_apply(g) if for_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None) -> Tensor | None:
        x, w = ctx.saved_tensors
        return total(
            None if x_t is None else dense_apply(x_t, w, None),  # eq. (7)
            None if w_t is None else dense_apply(x, w_t, None),  # eq. (8)
            bias_jvp(b_t, ctx.shape),
        )


dense_apply = differentiable(DenseFunction)


def dense(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The fully connected layer of equation (6), with a bias as in (17); its derivatives are (7) and (8).

    Equals ``torch.nn.functional.linear``. The document's w is ``weight.t()``.

    Args:
        input: (..., I); float16, bfloat16, float32 or float64.
        weight: (J, I), of the same dtype and on the same device; or (I,) for one output without a dimension.
        bias: (J,), or () for such a weight, or None.

    Returns:
        (..., J); under autocast in autocast's dtype.

    Raises:
        TypeError: a tensor that is not real floating point, or two dtypes.
        ValueError: shapes or devices that do not fit.
    """
    checks.a_tensor("dense", "input", input)
    checks.a_tensor("dense", "weight", weight)
    input, weight, bias = autocast_lower(input, weight, bias)
    checks.floating("dense", input=input, weight=weight, bias=bias)
    if weight.dim() not in (1, 2):
        raise ValueError(f"dense: weight must be (out, in) or (in,), got shape {tuple(weight.shape)}")
    if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"dense: weight of shape {tuple(weight.shape)} takes (..., {weight.shape[-1]}), "
            f"got input of shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(f"dense: bias must have shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}")
    shape = input.shape[:-1] + weight.shape[:-1]
    if input.dim() != 2:
        input = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    if weight.dim() == 1:
        weight, bias = weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    output = dense_apply(input, weight, bias)
    return output if output.shape == shape else output.reshape(shape)
