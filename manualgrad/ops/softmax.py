r"""Softmax, equations (11) and (12).

    S_i(z)    = e^{z_i} / Σ_k e^{z_k}                                            (11)
    ∂S_i/∂z_j = S_i (δ_ij − S_j)                                                 (12)

So a gradient g of S becomes B(g, S) = S ⊙ (g − Σ_i g_i S_i). The Jacobian (12) is symmetric, hence B is its own
adjoint in g. The derivative of B along S, applied to v, is

    Σ_i v_i ∂B_i/∂S_j = v_j (g_j − Σ_i g_i S_i) − g_j Σ_i v_i S_i.

With (12) it gives the second derivative of S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.dispatch import dispatched
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable, outer_forward_mode, save_for_derivatives, sum_present
from manualgrad.ops.layout import as_contiguous
from manualgrad.ops.precision import accumulation_dtype, cast_to_float32_under_autocast
from manualgrad.ops.products import difference, product_apply
from manualgrad.ops.tracers import traceable

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def softmax_forward(z: Tensor, dim: int) -> Tensor:
    """S(z), computed as S(z − max z), which is equal and does not overflow."""
    e = (z - z.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)  # eq. (11)


@dispatched
def softmax_backward(g: Tensor, s: Tensor, dim: int) -> Tensor:
    """B(g, S) = Σ_i g_i ∂S_i/∂z_j."""
    return as_contiguous(s * (g - _dot(g, s, dim)))  # eq. (12)


def softmax_backward_grad_s(v: Tensor, g: Tensor, s: Tensor, dim: int) -> Tensor:
    """Σ_i v_i ∂B_i/∂S_j, the gradient of B(g, S) along S."""
    return v * (g - _dot(g, s, dim)) - g * _dot(v, s, dim)


def softmax_backward_jvp_s(v: Tensor, g: Tensor, s: Tensor, dim: int) -> Tensor:
    """Σ_j ∂B_i/∂S_j v_j = v_i (g_i − Σ_j g_j S_j) − S_i Σ_j g_j v_j, made of Functions for use in a ``jvp``."""
    gs, gv = product_apply(g, s), product_apply(g, v)
    with outer_forward_mode():
        v_term = gv - v * gs.sum(dim, keepdim=True)
        gv_sum = gv.sum(dim, keepdim=True).expand_as(gv)
    return difference(v_term, product_apply(s, gv_sum))


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim, keepdim=True)


# ---------------------------------------------------------------------------------------------- Functions


class SoftmaxFunction(Function):
    """S(z) of equation (11). Saves S."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return softmax_forward(z, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_forward(output)
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (s,) = ctx.saved_tensors
        return softmax_backward_apply(g, s, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, z_t: Tensor, _: None) -> Tensor:
        (s,) = ctx.saved_tensors
        return softmax_backward_apply(z_t, s, ctx.dim)


class SoftmaxBackwardFunction(Function):
    """B(g, S) of equation (12). Saves S, and g for the gradient of S."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, s: Tensor, dim: int) -> Tensor:
        return softmax_backward(g, s, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, s, ctx.dim = inputs
        save_for_derivatives(ctx, g, s, needed=(ctx.needs_input_grad[1], True))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        g, s = ctx.saved_tensors
        needs_g, needs_s, _ = ctx.needs_input_grad
        return (
            softmax_backward_apply(v, s, ctx.dim) if needs_g else None,
            softmax_backward_grad_s(v, g, s, ctx.dim) if needs_s else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, s_t: Tensor | None, _: None) -> Tensor | None:
        g, s = ctx.saved_tensors
        return sum_present(
            None if g_t is None else softmax_backward_apply(g_t, s, ctx.dim),
            None if s_t is None else softmax_backward_jvp_s(s_t, g, s, ctx.dim),
        )


softmax_apply: Callable[[Tensor, int], Tensor] = differentiable(SoftmaxFunction)
softmax_backward_apply: Callable[[Tensor, Tensor, int], Tensor] = differentiable(SoftmaxBackwardFunction)


@traceable
def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Softmax of equation (11) along ``dim``; its derivative is (12).

    Equals ``torch.nn.functional.softmax``. 16-bit numbers are summed in float32.

    Args:
        input: any shape; float16, bfloat16, float32 or float64.
        dim: the dimension along which the results sum to 1.

    Returns:
        A contiguous tensor of the shape and dtype of input; under autocast float32, except on the CPU.

    Raises:
        TypeError: input is not real floating point.
        IndexError: input has no dimension ``dim``.
    """
    checks.require_floating("softmax", input=input)
    dim = checks.as_dim("softmax", input, dim)
    if input.device.type != "cpu":  # on the CPU autocast does not change softmax
        input = cast_to_float32_under_autocast(input)
    if input.numel() == 0:
        return input.clone()  # amax of no elements would raise
    return softmax_apply(as_contiguous(input.to(accumulation_dtype(input.dtype))), dim).to(input.dtype)
