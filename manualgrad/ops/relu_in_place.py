r"""ReLU written over its input, with PyTorch's 0 as the derivative at 0.

    R_i(z)    = z_i where z_i ≥ 0, 0 where z_i < 0                               (9)
    ∂R_i/∂z_j = δ_ij where R_i(z) > 0, 0 elsewhere                               (10)

z itself is gone afterwards. With 0 at zero, R(z) > 0 says the same as z > 0, so R(z) is all that backward needs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.relu import relu_apply, relu_backward_apply


class ReLUInPlaceFunction(Function):
    """R(z) of equation (9), over z. Saves R(z), which lies where z lay: no memory of its own. Reverse mode alone."""

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


relu_in_place_apply = differentiable(ReLUInPlaceFunction)


def relu_in_place(input: Tensor) -> Tensor:
    """ReLU, equation (9), over ``input``, which is returned; whoever holds ``input`` sees the change.

    Equals ``torch.nn.functional.relu_`` in value and gradient. Under the compiler, ``torch.func``'s transforms and
    forward mode, none of which bears a Function that changes its input, a copy is made first and written back.

    Args:
        input: any shape, any real dtype but bool.

    Raises:
        TypeError: a dtype that has no order.
        RuntimeError: a leaf that requires a gradient, as PyTorch's own raises.
    """
    checks.real("relu", input)
    if is_plain_tensor(input) and unpack_dual(input).tangent is None:
        return relu_in_place_apply(input)
    return input.copy_(relu_apply(input.clone(), 0))
