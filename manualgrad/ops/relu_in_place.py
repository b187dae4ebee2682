r"""ReLU in place, with PyTorch's 0 as the derivative at 0.

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where R_i(z) > 0, 0 elsewhere                               (10)

z is overwritten. With the derivative 0 at zero, R(z) > 0 is the same condition as z > 0, so backward needs only R(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

from manualgrad._torch_compat import is_forward_mode_active
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.relu import relu_apply, relu_backward_apply
from manualgrad.ops.tracers import traceable
from manualgrad.tensor_checks import is_plain_tensor


class ReLUInPlaceFunction(Function):
    """R(z) of equation (9), written over z. Saves R(z), which needs no memory of its own. Reverse mode only."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clamp_(min=0)  # eq. (9)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return relu_backward_apply(g, r, 0)  # eq. (10)


relu_in_place_apply: Callable[[Tensor], Tensor] = differentiable(ReLUInPlaceFunction)


@traceable
def relu_in_place(input: Tensor) -> Tensor:
    """ReLU of equation (9), written over ``input``, which is returned.

    Equals ``torch.nn.functional.relu_`` in value and gradient. Compilers, ``torch.func`` and forward mode do not
    support a Function that changes its input. Under them the ReLU of a copy is computed and written back.

    Args:
        input: any shape, any real dtype but bool.

    Raises:
        TypeError: a dtype without an order.
        RuntimeError: a leaf that requires a gradient, as in PyTorch.
    """
    checks.require_real("relu", input)
    if is_plain_tensor(input) and not (is_forward_mode_active() and _tangent_of(input) is not None):
        return relu_in_place_apply(input)
    return input.copy_(relu_apply(input.clone(), 0))


def _tangent_of(x: Tensor) -> Tensor | None:
    tangent: Tensor | None = unpack_dual(x).tangent  # type: ignore[no-untyped-call]  # PyTorch gives it no types
    return tangent
