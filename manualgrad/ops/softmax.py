r"""Softmax, equations (11) and (12).

    S_i(z)    = e^{z_i} / Σ_k e^{z_k}                                            (11)
    ∂S_i/∂z_j = S_i (δ_ij − S_j)                                                 (12)

So a gradient g of S becomes S ⊙ (g − Σ_i g_i S_i). Call that B(g, S). The Jacobian (12) is symmetric, hence B is its
own adjoint in g; and in S,

    Σ_i v_i ∂B_i/∂S_j = v_j (g_j − Σ_i g_i S_i) − g_j Σ_i v_i S_i,

which is the second derivative, reached through S and (12) once more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.cpu import small_kernels
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable, outer_tangents, save, total
from manualgrad.ops.precision import accumulator, autocast_float32
from manualgrad.ops.products import difference, multiply


def softmax_forward(z: Tensor, dim: int) -> Tensor:
    """S(z) from z − max z, which is the same number and does not overflow."""
    found = small_kernels.softmax_forward(z, dim)
    if found is not None:
        return found
    e = (z - z.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)  # eq. (11)


def softmax_backward(g: Tensor, s: Tensor, dim: int) -> Tensor:
    """B(g, S): Σ_i g_i ∂S_i/∂z_j."""
    return s * (g - (g * s).sum(dim, keepdim=True))  # eq. (12)


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
    """B(g, S) of equation (12)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, s: Tensor, dim: int) -> Tensor:
        return softmax_backward(g, s, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, s, ctx.dim = inputs
        save(ctx, g, s, needed=(ctx.needs_input_grad[1], True))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        g, s = ctx.saved_tensors
        for_g, for_s, _ = ctx.needs_input_grad
        return (
            softmax_backward_apply(v, s, ctx.dim) if for_g else None,
            _along_s(v, g, s, ctx.dim) if for_s else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, s_t: Tensor | None, _: None) -> Tensor | None:
        g, s = ctx.saved_tensors
        return total(
            None if g_t is None else softmax_backward_apply(g_t, s, ctx.dim),
            None if s_t is None else _change_along_s(s_t, g, s, ctx.dim),
        )


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim, keepdim=True)


def _along_s(v: Tensor, g: Tensor, s: Tensor, dim: int) -> Tensor:
    """Σ_i v_i ∂B_i/∂S_j."""
    return v * (g - _dot(g, s, dim)) - g * _dot(v, s, dim)


def _change_along_s(v: Tensor, g: Tensor, s: Tensor, dim: int) -> Tensor:
    """Σ_j ∂B_i/∂S_j v_j = v_i (g_i − Σ_j g_j S_j) − S_i Σ_j g_j v_j, out of Functions, as a ``jvp`` needs it."""
    gs, gv = multiply(g, s), multiply(g, v)
    with outer_tangents():
        first = gv - v * gs.sum(dim, keepdim=True)
        towards = gv.sum(dim, keepdim=True).expand_as(gv)
    return difference(first, multiply(s, towards))


softmax_apply = differentiable(SoftmaxFunction)
softmax_backward_apply = differentiable(SoftmaxBackwardFunction)


def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Softmax along ``dim``, equation (11); its derivative is (12).

    Equals ``torch.nn.functional.softmax``. Numbers of 16 bits are added up in float32.

    Args:
        input: any shape; float16, bfloat16, float32 or float64.
        dim: the dimension along which the results sum to 1.

    Returns:
        a tensor of the same shape and dtype; float32 under autocast, but on the CPU.

    Raises:
        TypeError: an input that is not real floating point.
        IndexError: no such dimension.
    """
    checks.floating("softmax", input=input)
    dim = checks.dimension("softmax", input, dim)
    if input.device.type != "cpu":  # autocast leaves softmax alone there
        input = autocast_float32(input)
    if input.numel() == 0:
        return input.clone()  # nothing to take the maximum of
    return softmax_apply(input.to(accumulator(input.dtype)), dim).to(input.dtype)
