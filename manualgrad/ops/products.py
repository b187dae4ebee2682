"""Products and sums as Functions, for use inside a ``jvp``.

PyTorch switches forward mode off while a ``jvp`` runs, and gives it back to Functions alone. A plain product with a
saved input would lose what an enclosing forward mode knows of that input, and third derivatives would be wrong
without a word. Sums and differences of tangents are for ``outer_tangents`` and ``total`` in ``differentiable.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.ops.differentiable import differentiable, linear_pair, outer_tangents, total


class ProductFunction(Function):
    """a ⊙ b, of one shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return multiply(g, b), multiply(a, g)

    @staticmethod
    def jvp(ctx: Any, a_t: Tensor | None, b_t: Tensor | None) -> Tensor | None:
        a, b = ctx.saved_tensors
        return total(None if a_t is None else multiply(a_t, b), None if b_t is None else multiply(a, b_t))


class ScaleRowsFunction(Function):
    """Each row x_b times its number g_b, or all of x times one number g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor) -> Tensor:
        return g.unsqueeze(-1) * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        along_g = sum_last(multiply(v, x))
        return along_g if g.dim() == along_g.dim() else along_g.sum(), scale(g, v)

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, x_t: Tensor | None) -> Tensor | None:
        g, x = ctx.saved_tensors
        return total(None if g_t is None else scale(g_t, x), None if x_t is None else scale(g, x_t))


def _summed(x: Tensor, _: None, size: int) -> Tensor:
    return x.sum(-1)


def _repeated(x: Tensor, _: None, size: int) -> Tensor:
    return x.unsqueeze(-1).repeat(*[1] * x.dim(), size)


multiply = differentiable(ProductFunction)
scale = differentiable(ScaleRowsFunction)
_sum, _repeat = linear_pair(("SumLastFunction", "RepeatLastFunction"), _summed, _repeated)


def sum_last(x: Tensor) -> Tensor:
    """Σ over the last dimension."""
    return _sum(x, None, x.shape[-1])


def repeat_last(x: Tensor, size: int) -> Tensor:
    """x_b as x_bk for k = 0 to ``size`` − 1: the adjoint of :func:`sum_last`."""
    return _repeat(x, None, size)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a − b, neither of which has a tangent of this level."""
    with outer_tangents():
        return a - b
