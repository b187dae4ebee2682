"""Functions of linear and bilinear maps, made from their formulas: the derivative of such a map is such a map again.

A linear map f has an adjoint f*. Each of the two is the backward of the other and its own jvp:

    map       jvp       backward
    f(x)      f(x_t)    f*(g)
    f*(g)     f*(g_t)   f(v)

A bilinear map f(a, b) is linear in a and linear in b. Each half of its backward is bilinear too, and leads back to f:

    map       jvp                       backward for a              backward for b
    f(a, b)   f(a_t, b) + f(a, b_t)     bilinear in g and b         bilinear in g and a

So derivatives of every order are made of the same few formulas. ``conv2d.py`` and ``dense.py`` are examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.differentiable import autograd_inactive, differentiable, save_for_derivatives, sum_present

Apply = Callable[..., Tensor]


def bilinear(
    name: str, formula: Apply, *, grad_first: Apply, grad_second: Apply, has_bias: bool = False,
    all_grads: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]] | None = None,
) -> Apply:  # fmt: skip
    """Return ``formula``, a bilinear map, as the Function ``name``.

    Args:
        formula: ``formula(a, b, *options)``, linear in the tensors a and b; with ``has_bias`` it is
            ``formula(a, b, bias, *options)`` and adds the bias of equation (17), or none if ``bias`` is None.
            ``options`` are no tensors.
        grad_first: ``grad_first(g, b, *options)``, the gradient of a for the gradient g of the result.
        grad_second: ``grad_second(g, a, *options)``, the gradient of b. Both must be differentiable themselves.
        all_grads: ``all_grads(g, a, b, needs_grad, *options)``, the gradients of a, b and the bias, if there is a
            faster way to them at once, None for those that ``needs_grad`` leaves out. a may be None if b needs no
            gradient, and b if a needs none. It is called where nothing differentiates it.
    """

    num_tensors = 3 if has_bias else 2

    class BilinearFunction(Function):
        __doc__ = formula.__doc__
        forward = staticmethod(formula)
        generate_vmap_rule = True

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.options, ctx.shape = inputs[num_tensors:], output.shape
            needs_grad = ctx.needs_input_grad
            save_for_derivatives(ctx, inputs[0], inputs[1], needed=(needs_grad[1], needs_grad[0]))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            a, b = ctx.saved_tensors
            needs_grad, options = ctx.needs_input_grad, ctx.options
            no_grads = (None,) * len(options)
            if all_grads is not None and autograd_inactive():
                return *all_grads(g, a, b, needs_grad, *options), *no_grads
            grad_a = grad_first(g, b, *options) if needs_grad[0] else None
            grad_b = grad_second(g, a, *options) if needs_grad[1] else None
            if not has_bias:
                return grad_a, grad_b, *no_grads
            return grad_a, grad_b, grad_bias_apply(g) if needs_grad[2] else None, *no_grads

        @staticmethod
        def jvp(ctx: Any, a_t: Tensor | None, b_t: Tensor | None, *others_t: Tensor | None) -> Tensor | None:
            a, b = ctx.saved_tensors
            no_bias_and_options = (None, *ctx.options) if has_bias else ctx.options
            return sum_present(
                None if a_t is None else apply(a_t, b, *no_bias_and_options),
                None if b_t is None else apply(a, b_t, *no_bias_and_options),
                bias_jvp(others_t[0], ctx.shape) if has_bias else None,
            )

    apply: Apply = differentiable(type(name, (BilinearFunction,), {}))
    return apply


def linear_pair(names: tuple[str, str], formula: Apply, adjoint: Apply) -> tuple[Apply, Apply]:
    """Return ``formula``, a linear map, and its ``adjoint`` as two Functions called ``names``.

    Both take (x, constant, geometry) and are linear in x. ``constant`` is a tensor without a gradient, or None;
    ``geometry`` is no tensor.
    """
    apply = _linear(names[0], formula, lambda g, constant, geometry: adjoint_apply(g, constant, geometry))
    adjoint_apply = _linear(names[1], adjoint, apply)
    return apply, adjoint_apply


def _linear(name: str, formula: Apply, adjoint: Apply) -> Apply:
    class LinearFunction(Function):
        __doc__ = formula.__doc__
        forward = staticmethod(formula)
        generate_vmap_rule = True

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            _, constant, ctx.geometry = inputs
            save_for_derivatives(ctx, constant, needed=(True,))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
            (constant,) = ctx.saved_tensors
            return adjoint(g, constant, ctx.geometry), None, None

        @staticmethod
        def jvp(ctx: Any, x_t: Tensor, *_: None) -> Tensor:
            (constant,) = ctx.saved_tensors
            return apply(x_t, constant, ctx.geometry)

    apply: Apply = differentiable(type(name, (LinearFunction,), {}))
    return apply
