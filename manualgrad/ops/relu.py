r"""ReLU, equations (9) and (10).

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where z_i > 0, ½ δ_ij where z_i = 0, 0 where z_i < 0        (10)

The ½ at zero is a parameter here, ``subgradient``; PyTorch's own ReLU has 0. Zero is zero, −0.0 too. Away from
zero (10) is constant, so the second derivative is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.cpu import small_kernels
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.selection import select


def relu_forward(z: Tensor) -> Tensor:
    """R(z); NaN stays NaN."""
    return z.clamp(min=0)  # eq. (9)


def relu_backward(g: Tensor, z: Tensor, subgradient: float) -> Tensor:
    """g ∂R/∂z, where a NaN in z lets g through, as in PyTorch."""
    found = small_kernels.relu_backward(g, z, subgradient)
    if found is not None:
        return found
    above = select(~(z <= 0), g)  # eq. (10), z > 0
    return above + subgradient * select(z == 0, g) if subgradient else above  # eq. (10), z = 0


class ReLUFunction(Function):
    """R(z) of equation (9). Saves z, since R(z) alone no longer tells z = 0 from z < 0.

    Where both have derivative 0 it saves R(z), which the next layer keeps anyway.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, subgradient: float) -> Tensor:
        return relu_forward(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.subgradient = inputs
        kept = z if ctx.subgradient else output
        ctx.save_for_forward(kept)
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return relu_backward_apply(g, z, ctx.subgradient), None

    @staticmethod
    def jvp(ctx: Any, z_t: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return relu_backward_apply(z_t, z, ctx.subgradient)


class ReLUBackwardFunction(Function):
    """g ∂R/∂z of equation (10): linear in g, and constant in z but for the jump at 0."""

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
        for_g, for_z, _ = ctx.needs_input_grad
        return (
            relu_backward_apply(v, z, ctx.subgradient) if for_g else None,
            torch.zeros_like(z) if for_z else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, *_: Tensor | None) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.zeros_like(z) if g_t is None else relu_backward_apply(g_t, z, ctx.subgradient)


relu_apply = differentiable(ReLUFunction)
relu_backward_apply = differentiable(ReLUBackwardFunction)


def relu(input: Tensor, *, subgradient: float = 0.5) -> Tensor:
    """ReLU, equation (9); its derivative is (10).

    Equals ``torch.nn.functional.relu`` in value. In gradient it differs at exact zeros: ``subgradient=0`` is
    PyTorch's ReLU, ½ is the document's, and that of ``torch.maximum(input, zeros)``.

    Args:
        input: any shape, any real dtype but bool (whole numbers have no gradient).
        subgradient: the derivative at zero, from 0 to 1.

    Returns:
        a tensor of the same shape and dtype.

    Raises:
        TypeError: a dtype that has no order.
        ValueError: a subgradient outside [0, 1].
    """
    checks.real("relu", input)
    checks.share("relu", "subgradient", subgradient)
    return relu_apply(input, subgradient)
