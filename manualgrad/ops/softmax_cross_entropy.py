r"""Softmax cross-entropy, equations (13), (14) and (15).

    J          = (1/B) Σ_b J^b                                                   (13)
    J^b        = −Σ_i y_i log S_i(z^b)                                           (14)
    ∂J^b/∂z_j  = S_j Σ_k y_k − y_j, which is S_j − y_j where Σ_k y_k = 1         (15)
    ∂J^b/∂y_j  = −log S_j

Equation (14) of the formula sheet prints z for the softmax of z. (15) is computed in its general form, the line
before its last: targets need not sum to 1. So class weights, label smoothing, ignored examples and the 1/B of (13)
are all part of y (see ``targets.py``), and one formula is enough.

J is linear in y: its derivative along y, applied to v, is J with v in place of y. Let τ = Σ_k y_k. By (15) a gradient
g of J becomes G(g, z, y) = g (τ S − y), and a tangent v of z becomes A(v, z, y) = Σ_k v_k (τ S_k − y_k), the tangent
of J. The two are each other's adjoint. Their own derivatives are

    of A along z:  τ S ⊙ (v − Σ_k v_k S_k) = τ B(v, S), equation (12) again
    of A along y:  Σ_k v_k S_k − v
    of G along z and y, applied to v: g times these two, since the second derivative of J is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.dispatch import dispatched
from manualgrad.ops.differentiable import differentiable, outer_forward_mode, save_for_derivatives, sum_present
from manualgrad.ops.products import difference, product_apply, repeat_last, scale_rows_apply, sum_last
from manualgrad.ops.softmax import softmax_apply, softmax_backward_apply, softmax_forward

# ------------------------------- formulas; z and y are (N, ..., C), classes last; with ``summed`` J is one number


def log_softmax_forward(z: Tensor) -> Tensor:
    """log S(z), the logarithm of (11); finite even where S itself rounds to 0."""
    shifted = z - z.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()  # eq. (11)


@dispatched
def cross_entropy_forward(z: Tensor, y: Tensor, summed: bool) -> Tensor:
    """J^b of each example, or their sum. A class with y = 0 contributes 0, even if its S is 0."""
    losses = torch.where(y == 0, 0, -y * log_softmax_forward(z)).sum(-1)  # eq. (14)
    return losses.sum() if summed else losses  # eq. (13), whose 1/B is part of y


@dispatched
def cross_entropy_backward(g: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """G(g, z, y), with one g for all examples or one g for each; for an example with y = 0 it is 0, whatever g is."""
    g = torch.where((y != 0).any(-1), g, 0).unsqueeze(-1)
    return g * (softmax_forward(z, -1) * y.sum(-1, keepdim=True) - y)  # eq. (15)


def cross_entropy_jvp(v: Tensor, z: Tensor, y: Tensor, summed: bool) -> Tensor:
    """A(v, z, y) of each example, or their sum."""
    tangents = (v * (softmax_forward(z, -1) * y.sum(-1, keepdim=True) - y)).sum(-1)  # eq. (15)
    return tangents.sum() if summed else tangents


def cross_entropy_grad_target(g: Tensor, z: Tensor) -> Tensor:
    """g ∂J/∂y."""
    return -g.unsqueeze(-1) * log_softmax_forward(z)  # eq. (14)


# ---------------------------------------------------------------------------------------------- Functions


class CrossEntropyFunction(Function):
    """J of equations (13) and (14). Saves z, and y for the gradient of z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, y: Tensor, summed: bool) -> Tensor:
        return cross_entropy_forward(z, y, summed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, y, ctx.summed = inputs
        save_for_derivatives(ctx, z, y, needed=(True, ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, y = ctx.saved_tensors
        needs_z, needs_y, _ = ctx.needs_input_grad
        return (
            cross_entropy_backward_apply(g, z, y) if needs_z else None,
            cross_entropy_grad_target_apply(g, z) if needs_y else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, z_t: Tensor | None, y_t: Tensor | None, _: None) -> Tensor | None:
        z, y = ctx.saved_tensors
        return sum_present(
            None if z_t is None else cross_entropy_jvp_apply(z_t, z, y, ctx.summed),
            None if y_t is None else cross_entropy_apply(z, y_t, ctx.summed),
        )


class CrossEntropyBackwardFunction(Function):
    """G(g, z, y) of equation (15)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy_backward(g, z, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, z, y = inputs
        needs_g, needs_z, needs_y = ctx.needs_input_grad
        save_for_derivatives(ctx, g, z, y, needed=(needs_z or needs_y, True, needs_g or needs_z))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        g, z, y = ctx.saved_tensors
        needs_g, needs_z, needs_y = ctx.needs_input_grad
        return (
            cross_entropy_jvp_apply(v, z, y, g.dim() == 0) if needs_g else None,
            scale_rows_apply(g, _jvp_grad_logits(v, z, y)) if needs_z else None,
            scale_rows_apply(g, _jvp_grad_target(v, z)) if needs_y else None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, z_t: Tensor | None, y_t: Tensor | None) -> Tensor | None:
        g, z, y = ctx.saved_tensors
        return sum_present(
            None if g_t is None else cross_entropy_backward_apply(g_t, z, y),
            None if z_t is None else scale_rows_apply(g, _jvp_grad_logits(z_t, z, y)),
            None if y_t is None else cross_entropy_backward_apply(g, z, y_t),  # G is linear in y
        )


class CrossEntropyJvpFunction(Function):
    """A(v, z, y) of equation (15)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, z: Tensor, y: Tensor, summed: bool) -> Tensor:
        return cross_entropy_jvp(v, z, y, summed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        v, z, y, ctx.summed = inputs
        needs_v, needs_z, needs_y, _ = ctx.needs_input_grad
        save_for_derivatives(ctx, v, z, y, needed=(needs_z or needs_y, True, needs_v or needs_z))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        v, z, y = ctx.saved_tensors
        needs_v, needs_z, needs_y, _ = ctx.needs_input_grad
        return (
            cross_entropy_backward_apply(g, z, y) if needs_v else None,
            scale_rows_apply(g, _jvp_grad_logits(v, z, y)) if needs_z else None,
            scale_rows_apply(g, _jvp_grad_target(v, z)) if needs_y else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, v_t: Tensor | None, z_t: Tensor | None, y_t: Tensor | None, _: None) -> Tensor | None:
        v, z, y = ctx.saved_tensors
        z_term = None
        if z_t is not None:
            grad_logits = _jvp_grad_logits(v, z, y)
            with outer_forward_mode():
                z_term = (z_t * grad_logits).sum(-1)
                z_term = z_term.sum() if ctx.summed else z_term
        return sum_present(
            None if v_t is None else cross_entropy_jvp_apply(v_t, z, y, ctx.summed),
            z_term,
            None if y_t is None else cross_entropy_jvp_apply(v, z, y_t, ctx.summed),  # A is linear in y
        )


class CrossEntropyGradTargetFunction(Function):
    """g ∂J/∂y = −g log S(z). For a gradient v of it, its derivative along z is g (S Σ_k v_k − v)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, z: Tensor) -> Tensor:
        return cross_entropy_grad_target(g, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, z = inputs
        save_for_derivatives(ctx, g, z, needed=(True, True))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, z = ctx.saved_tensors
        needs_g, needs_z = ctx.needs_input_grad
        return (
            cross_entropy_apply(z, v, g.dim() == 0) if needs_g else None,
            cross_entropy_backward_apply(g, z, v) if needs_z else None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, z_t: Tensor | None) -> Tensor | None:
        g, z = ctx.saved_tensors
        return sum_present(
            None if g_t is None else cross_entropy_grad_target_apply(g_t, z),
            None if z_t is None else scale_rows_apply(g, _jvp_grad_target(z_t, z)),
        )


def _jvp_grad_logits(v: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """The derivative of A along z: τ B(v, S)."""
    return scale_rows_apply(sum_last(y), softmax_backward_apply(v, softmax_apply(z, -1), -1))  # eq. (12)


def _jvp_grad_target(v: Tensor, z: Tensor) -> Tensor:
    """The derivative of A along y: Σ_k v_k S_k − v."""
    return difference(repeat_last(sum_last(product_apply(v, softmax_apply(z, -1))), v.shape[-1]), v)  # eq. (15)


cross_entropy_apply: Callable[[Tensor, Tensor, bool], Tensor] = differentiable(CrossEntropyFunction)
cross_entropy_backward_apply: Callable[[Tensor, Tensor, Tensor], Tensor] = differentiable(
    CrossEntropyBackwardFunction
)
cross_entropy_jvp_apply: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = differentiable(CrossEntropyJvpFunction)
cross_entropy_grad_target_apply: Callable[[Tensor, Tensor], Tensor] = differentiable(CrossEntropyGradTargetFunction)
