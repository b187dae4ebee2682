r"""The bias of equation (17), :math:`\mathbf z = \mathbf f(\mathbf x, \mathbf w) + \mathbf b`.

b is broadcast to z, so the derivative adds up δ over what it was broadcast over: :math:`\partial z_{bijk} /
\partial b_m = \delta_{km}`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.functions.differentiable import differentiable


def bias_gradient(g: Tensor) -> Tensor:
    """Σ over all but the channels, dimension 1: (B, K, ...) to (K,)."""
    return g.sum([dim for dim in range(g.dim()) if dim != 1])  # eq. (17)


class BiasGradient(Function):
    """:func:`bias_gradient`, which is linear: its derivative broadcasts again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor) -> Tensor:
        return bias_gradient(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v.view(-1, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor) -> Tensor:
        return pull_to_bias(g_t)


pull_to_bias = differentiable(BiasGradient)
