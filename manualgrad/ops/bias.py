r"""The bias of equation (17), :math:`\mathbf z = \mathbf f(\mathbf x, \mathbf w) + \mathbf b`.

b is broadcast to z, so its derivative sums δ over the dimensions that b was broadcast over:
:math:`\partial z_{bijk} / \partial b_m = \delta_{km}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.ops.differentiable import differentiable, outer_forward_mode


def grad_bias(g: Tensor) -> Tensor:
    """Sum of ``g`` over all dimensions but the channels: (N, C, ...) to (C,)."""
    return g.sum([dim for dim in range(g.dim()) if dim != 1])  # eq. (17)


def broadcast_bias(b: Tensor, shape: torch.Size) -> Tensor:
    """View of ``b`` broadcast to the shape of z: (C,) to (N, C, ...)."""
    return b.view(-1, *[1] * (len(shape) - 2)).expand(shape)  # eq. (17)


def bias_jvp(b_t: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Contribution of the tangent ``b_t`` to the tangent of z, or None if there is no ``b_t``."""
    if b_t is None:
        return None
    with outer_forward_mode():
        return broadcast_bias(b_t, shape)


class GradBiasFunction(Function):
    """:func:`grad_bias`, which is linear in g; its derivative is :func:`broadcast_bias`. Saves the shape of g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor) -> Tensor:
        return grad_bias(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return broadcast_bias(v, ctx.shape)

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor) -> Tensor:
        return grad_bias_apply(g_t)


grad_bias_apply: Callable[[Tensor], Tensor] = differentiable(GradBiasFunction)
