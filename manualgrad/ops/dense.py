r"""Fully connected layer, equations (6), (7) and (8).

    D_j(x, w) = Σ_i x_i w_ij                                                     (6)
    ∂D_j/∂x_k = w_kj                                                             (7)
    ∂D_j/∂w_ck = x_c δ_jk                                                        (8)

For a batch, (6) is the matrix product x w. With a gradient g of D, the sums Σ_j g_j ∂D_j/∂x_k and Σ_j g_j ∂D_j/∂w_ck
are the matrix products g wᵀ and xᵀ g. So D is its own derivative with transposed operands, to any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.dispatch import dispatched
from manualgrad.ops import checks
from manualgrad.ops.linear_maps import Apply, bilinear
from manualgrad.ops.precision import cast_to_autocast_dtype
from manualgrad.ops.tracers import traceable

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def dense_forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """D(x, w) + b: x (N, in_features), w (in_features, out_features), b (out_features,) to (N, out_features)."""
    if b is None:
        return torch.mm(x, w)  # eq. (6)
    return torch.addmm(b, x, w)  # eq. (6), (17)


# ---------------------------------------------------------------------------------------------- Functions


def dense_linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x wᵀ + b of equations (6) and (17), with w (out_features, in_features) as a layer has it."""
    return dense_forward(x, w.t(), b)


def dense_grad_input_apply(g: Tensor, w: Tensor) -> Tensor:
    """Gradient of x: g w, which is g times the transpose of wᵀ."""
    return dense_apply(g, w.t(), None)  # eq. (7)


def dense_grad_weight_apply(g: Tensor, x: Tensor) -> Tensor:
    """Gradient of w: gᵀ x, which rounds less than (xᵀ g)ᵀ for a large batch."""
    return dense_apply(g.t(), x.t(), None)  # eq. (8)


dense_apply = bilinear(
    "DenseFunction",
    dense_linear,
    grad_first=dense_grad_input_apply,
    grad_second=dense_grad_weight_apply,
    has_bias=True,
)


@traceable
def dense(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Fully connected layer of equation (6), with the bias of (17); its derivatives are (7) and (8).

    Equals ``torch.nn.functional.linear``. The formula sheet's w is ``weight.t()``.

    Args:
        input: (..., in_features); float16, bfloat16, float32 or float64.
        weight: (out_features, in_features), of the same dtype and on the same device. (in_features,) stands for one
            output, whose dimension the result then lacks.
        bias: (out_features,), () for a weight of shape (in_features,), or None.

    Returns:
        (..., out_features); under autocast in autocast's dtype.

    Raises:
        TypeError: a tensor is not real floating point, or dtypes differ.
        ValueError: shapes or devices do not fit.
    """
    return apply_dense(dense_apply, input, weight, bias)


def apply_dense(apply: Apply, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Check the arguments of :func:`dense`, and call ``apply`` with a matrix of inputs and one of weights."""
    checks.require_tensor("dense", "input", input)
    checks.require_tensor("dense", "weight", weight)
    input, weight, bias = cast_to_autocast_dtype(input, weight, bias)
    checks.require_floating("dense", input=input, weight=weight, bias=bias)
    if weight.dim() not in (1, 2):
        raise ValueError(
            f"dense: weight must have shape (out_features, in_features) or (in_features,), "
            f"got shape {tuple(weight.shape)}"
        )
    if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"dense: weight of shape {tuple(weight.shape)} takes input of shape (..., {weight.shape[-1]}), "
            f"got input of shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(f"dense: bias must have shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}")
    shape = input.shape[:-1] + weight.shape[:-1]
    if input.dim() != 2:
        input = input.flatten(0, -2) if input.dim() > 2 else input.unsqueeze(0)
    if weight.dim() == 1:
        weight, bias = weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    output = apply(input, weight, bias)
    return output if output.shape == shape else output.reshape(shape)
