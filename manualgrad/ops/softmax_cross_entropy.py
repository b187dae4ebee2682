r"""Softmax cross-entropy, equations (13), (14) and (15).

    J          = (1/B) Σ_b J^b                                                   (13)
    J^b        = −Σ_i y_i log S_i(z^b)                                           (14)
    ∂J^b/∂z_j  = S_j Σ_k y_k − y_j, which is S_j − y_j where Σ_k y_k = 1         (15)
    ∂J^b/∂y_j  = −log S_j

The document's (14) prints z where it means the softmax of it. The general form of (15), the line before its last, is
what is computed: targets need not sum to 1. So class weights, label smoothing, ignored examples and the 1/B of (13)
are all part of y (see ``targets.py``), and one formula serves.

J is linear in y: the derivative along y, towards v, is J again with v in place of y. With τ = Σ_k y_k and a
gradient g of J, (15) is G(g, z, y) = g (τ S − y); and towards a change v of z, J changes by
A(v, z, y) = Σ_k v_k (τ S_k − y_k). The two are each other's adjoint, and their own derivatives are

    of A along z:  τ S ⊙ (v − Σ_k v_k S_k) = τ B(v, S), equation (12) again
    of A along y:  Σ_k v_k S_k − v
    of G, towards v: g times the same two; the second derivative of J is symmetric.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.cpu import small_kernels
from manualgrad.ops.differentiable import differentiable, outer_tangents, save, total
from manualgrad.ops.products import difference, multiply, repeat_last, scale, sum_last
from manualgrad.ops.softmax import softmax_apply, softmax_backward_apply, softmax_forward

# -------------------------------------------------------------- formulas; the classes are the last dimension


def log_softmax_forward(z: Tensor) -> Tensor:
    """log S(z), the logarithm of (11), which stays finite where S itself rounds to 0."""
    shifted = z - z.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()  # eq. (11)


def cross_entropy_forward(z: Tensor, y: Tensor, summed: bool) -> Tensor:
    """J^b of every example, or its sum; a class with y = 0 costs nothing, though its S be 0."""
    found = small_kernels.cross_entropy(z, y, summed)
    if found is not None:
        return found
    each = torch.where(y == 0, 0, -y * log_softmax_forward(z)).sum(-1)  # eq. (14)
    return each.sum() if summed else each  # eq. (13), whose 1/B is part of y


def cross_entropy_backward(g: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """G(g, z, y), where g is one number, or one for each example; an example without a target has no part in g."""
    found = small_kernels.cross_entropy_backward(g, z, y)
    if found is not None:
        return found
    g = torch.where((y != 0).any(-1), g, 0).unsqueeze(-1)
    return g * (softmax_forward(z, -1) * y.sum(-1, keepdim=True) - y)  # eq. (15)


def cross_entropy_jvp(v: Tensor, z: Tensor, y: Tensor, summed: bool) -> Tensor:
    """A(v, z, y)."""
    each = (v * (softmax_forward(z, -1) * y.sum(-1, keepdim=True) - y)).sum(-1)  # eq. (15)
    return each.sum() if summed else each


def cross_entropy_grad_target(g: Tensor, z: Tensor) -> Tensor:
    """∂J/∂y."""
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
        save(ctx, z, y, needed=(True, ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, y = ctx.saved_tensors
        for_z, for_y, _ = ctx.needs_input_grad
        return (
            cross_entropy_backward_apply(g, z, y) if for_z else None,
            cross_entropy_grad_target_apply(g, z) if for_y else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, z_t: Tensor | None, y_t: Tensor | None, _: None) -> Tensor | None:
        z, y = ctx.saved_tensors
        return total(
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
        for_g, for_z, for_y = ctx.needs_input_grad
        save(ctx, g, z, y, needed=(for_z or for_y, True, for_g or for_z))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        g, z, y = ctx.saved_tensors
        for_g, for_z, for_y = ctx.needs_input_grad
        return (
            cross_entropy_jvp_apply(v, z, y, g.dim() == 0) if for_g else None,
            scale(g, _along_logits(v, z, y)) if for_z else None,
            scale(g, _along_target(v, z)) if for_y else None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, z_t: Tensor | None, y_t: Tensor | None) -> Tensor | None:
        g, z, y = ctx.saved_tensors
        return total(
            None if g_t is None else cross_entropy_backward_apply(g_t, z, y),
            None if z_t is None else scale(g, _along_logits(z_t, z, y)),
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
        for_v, for_z, for_y, _ = ctx.needs_input_grad
        save(ctx, v, z, y, needed=(for_z or for_y, True, for_v or for_z))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        v, z, y = ctx.saved_tensors
        for_v, for_z, for_y, _ = ctx.needs_input_grad
        return (
            cross_entropy_backward_apply(g, z, y) if for_v else None,
            scale(g, _along_logits(v, z, y)) if for_z else None,
            scale(g, _along_target(v, z)) if for_y else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, v_t: Tensor | None, z_t: Tensor | None, y_t: Tensor | None, _: None) -> Tensor | None:
        v, z, y = ctx.saved_tensors
        along_z = None
        if z_t is not None:
            each = _along_logits(v, z, y)
            with outer_tangents():
                along_z = (z_t * each).sum(-1)
                along_z = along_z.sum() if ctx.summed else along_z
        return total(
            None if v_t is None else cross_entropy_jvp_apply(v_t, z, y, ctx.summed),
            along_z,
            None if y_t is None else cross_entropy_jvp_apply(v, z, y_t, ctx.summed),  # A is linear in y
        )


class CrossEntropyGradTargetFunction(Function):
    """∂J/∂y = −g log S(z), whose derivative along z is g (S Σ_k v_k − v), for v given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, z: Tensor) -> Tensor:
        return cross_entropy_grad_target(g, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, z = inputs
        save(ctx, g, z, needed=(True, True))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, z = ctx.saved_tensors
        for_g, for_z = ctx.needs_input_grad
        return (
            cross_entropy_apply(z, v, g.dim() == 0) if for_g else None,
            cross_entropy_backward_apply(g, z, v) if for_z else None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, z_t: Tensor | None) -> Tensor | None:
        g, z = ctx.saved_tensors
        return total(
            None if g_t is None else cross_entropy_grad_target_apply(g_t, z),
            None if z_t is None else scale(g, _along_target(z_t, z)),
        )


def _along_logits(v: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """The derivative of A along z: τ B(v, S)."""
    return scale(sum_last(y), softmax_backward_apply(v, softmax_apply(z, -1), -1))  # eq. (12)


def _along_target(v: Tensor, z: Tensor) -> Tensor:
    """The derivative of A along y: Σ_k v_k S_k − v."""
    return difference(repeat_last(sum_last(multiply(v, softmax_apply(z, -1))), v.shape[-1]), v)  # eq. (15)


cross_entropy_apply = differentiable(CrossEntropyFunction)
cross_entropy_backward_apply = differentiable(CrossEntropyBackwardFunction)
cross_entropy_jvp_apply = differentiable(CrossEntropyJvpFunction)
cross_entropy_grad_target_apply = differentiable(CrossEntropyGradTargetFunction)
