r"""ReLU, equations (9) and (10).

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)

The ½ at zero is the parameter ``subgradient``; PyTorch's ReLU has 0. −0.0 counts as zero. Away from zero (10) is
constant, so the second derivative is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import jit_tracing_state
from manualgrad.dispatch import dispatched
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.selection import select
from manualgrad.ops.tracers import traceable

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def relu_forward(z: Tensor) -> Tensor:
    """R(z); NaN stays NaN."""
    return z.clamp(min=0)  # eq. (9)


@dispatched
def relu_backward(g: Tensor, z: Tensor, subgradient: float) -> Tensor:
    """g ∂R/∂z; where z is NaN it is g, as in PyTorch."""
    grad_z = select(~(z <= 0), g)  # eq. (10), z > 0
    return grad_z + subgradient * select(z == 0, g) if subgradient else grad_z  # eq. (10), z = 0


# ---------------------------------------------------------------------------------------------- Functions


class ReLUFunction(Function):
    """R(z) of equation (9). Saves z, since R(z) does not distinguish z = 0 from z < 0.

    With subgradient 0 both have the derivative 0, and it saves R(z), which the next layer saves anyway.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, subgradient: float) -> Tensor:
        if jit_tracing_state():
            return relu_backward(z, z, subgradient)  # R(z) = (∂R/∂z) z, whose derivative autograd computes as (10)
        return relu_forward(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.subgradient = inputs
        saved = z if ctx.subgradient else output
        ctx.save_for_forward(saved)
        ctx.save_for_backward(saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return relu_backward_apply(g, z, ctx.subgradient), None

    @staticmethod
    def jvp(ctx: Any, z_t: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return relu_backward_apply(z_t, z, ctx.subgradient)


class ReLUBackwardFunction(Function):
    """g ∂R/∂z of equation (10): linear in g, and constant in z except for the jump at 0. Saves z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, z: Tensor, subgradient: float) -> Tensor:
        return relu_backward(g, z, subgradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, z, ctx.subgradient = inputs
        ctx.save_for_forward(z)
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (z,) = ctx.saved_tensors
        needs_g, needs_z, _ = ctx.needs_input_grad
        return (
            relu_backward_apply(v, z, ctx.subgradient) if needs_g else None,
            torch.zeros_like(z) if needs_z else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, *_: Tensor | None) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.zeros_like(z) if g_t is None else relu_backward_apply(g_t, z, ctx.subgradient)


class ReLUKeepingInputFunction(ReLUFunction):
    """The same, which always saves z: for a z that nobody else has, so that R(z) may be changed in place."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.subgradient = inputs
        ctx.save_for_forward(z)
        ctx.save_for_backward(z)


relu_apply: Callable[[Tensor, float], Tensor] = differentiable(ReLUFunction)
relu_keeping_input_apply: Callable[[Tensor, float], Tensor] = differentiable(ReLUKeepingInputFunction)
relu_backward_apply: Callable[[Tensor, Tensor, float], Tensor] = differentiable(ReLUBackwardFunction)


@traceable
def relu(input: Tensor, *, subgradient: float = 0.5) -> Tensor:
    """ReLU of equation (9); its derivative is (10).

    Equals ``torch.nn.functional.relu`` in value. The gradient differs at exact zeros: ``subgradient=0`` is PyTorch's
    ReLU, ½ is the formula sheet's and that of ``torch.maximum(input, zeros)``.

    Args:
        input: any shape, any real dtype but bool (integers have no gradient).
        subgradient: the derivative at zero, from 0 to 1.

    Returns:
        A tensor of the shape and dtype of input.

    Raises:
        TypeError: a dtype without an order.
        ValueError: subgradient is outside [0, 1].
    """
    checks.require_real("relu", input)
    checks.require_fraction("relu", "subgradient", subgradient)
    return relu_apply(input, subgradient)
