"""Products and sums as Functions, for use inside a ``jvp``.

PyTorch switches forward mode off while a ``jvp`` runs, and switches it on again for Functions only. A plain product
with a saved input would lose the tangent that an enclosing forward mode has for this input, and third derivatives
would be wrong without an error. Sums and differences of tangents need ``outer_forward_mode`` or ``sum_present`` of
``differentiable.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.ops.differentiable import differentiable, outer_forward_mode, sum_present
from manualgrad.ops.linear_maps import linear_pair


class ProductFunction(Function):
    """a ⊙ b of two tensors of one shape. Saves both."""

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
        return product_apply(g, b), product_apply(a, g)

    @staticmethod
    def jvp(ctx: Any, a_t: Tensor | None, b_t: Tensor | None) -> Tensor | None:
        a, b = ctx.saved_tensors
        return sum_present(
            None if a_t is None else product_apply(a_t, b), None if b_t is None else product_apply(a, b_t)
        )


class ScaleRowsFunction(Function):
    """g_n x_n for each row n of x, with one factor g_n for each row, or one factor g for all. Saves both."""

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
        grad_g = sum_last(product_apply(v, x))
        return grad_g if g.dim() == grad_g.dim() else grad_g.sum(), scale_rows_apply(g, v)

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, x_t: Tensor | None) -> Tensor | None:
        g, x = ctx.saved_tensors
        return sum_present(
            None if g_t is None else scale_rows_apply(g_t, x), None if x_t is None else scale_rows_apply(g, x_t)
        )


def _sum_last(x: Tensor, _: None, size: int) -> Tensor:
    return x.sum(-1)


def _repeat_last(x: Tensor, _: None, size: int) -> Tensor:
    return x.unsqueeze(-1).repeat(*[1] * x.dim(), size)


product_apply: Callable[[Tensor, Tensor], Tensor] = differentiable(ProductFunction)
scale_rows_apply: Callable[[Tensor, Tensor], Tensor] = differentiable(ScaleRowsFunction)
_sum_last_apply, _repeat_last_apply = linear_pair(("SumLastFunction", "RepeatLastFunction"), _sum_last, _repeat_last)


def sum_last(x: Tensor) -> Tensor:
    """Sum over the last dimension."""
    return _sum_last_apply(x, None, x.shape[-1])


def repeat_last(x: Tensor, size: int) -> Tensor:
    """x with a new last dimension along which each value is repeated ``size`` times: the adjoint of sum_last."""
    return _repeat_last_apply(x, None, size)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a − b of two tensors that have no tangent of this level."""
    with outer_forward_mode():
        return a - b
