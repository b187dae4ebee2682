"""What every hand-derived Function shares: how it is called, and what it keeps for its derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import BackwardCFunction


@dataclass
class PositionalArguments:
    """What :class:`PositionalSignature` binds: the arguments, as they are."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def apply_defaults(self) -> None:
        """There are none."""


class PositionalSignature(inspect.Signature):
    """A signature without defaults whose arguments are all given, and in order.

    ``Function.apply`` binds them at each call, which takes longer than all else it does; to these there is nothing to
    do."""

    __slots__ = ()

    def bind(self, *args: Any) -> PositionalArguments:
        return PositionalArguments(args)


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """``function.apply``, fit for ``torch.compile`` as well, and quick.

    TorchDynamo refuses a Function that has a ``jvp``, and never uses it: a compiled graph runs in reverse mode
    alone. While it traces, it is given a twin without one. Everywhere else, forward mode is ours.

    Where nothing will be differentiated, as in most backwards, a Function is its ``forward``.
    """
    function.forward.__signature__ = PositionalSignature.from_callable(function.forward)
    reverse_only = type(function.__name__, (function,), {"jvp": Function.jvp, "__doc__": function.__doc__})

    def apply(*args: Any) -> Any:
        if autograd_inactive():
            return function.forward(*args)
        return (reverse_only if torch.compiler.is_compiling() else function).apply(*args)

    apply.__name__ = apply.__qualname__ = function.__name__
    apply.__doc__ = function.__doc__
    return apply


def autograd_inactive() -> bool:
    """Whether nothing that is computed now will be differentiated, by any means."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    )


def save(ctx: Any, *tensors: Tensor | None, needed: Sequence[bool]) -> None:
    """Keeps ``tensors`` for ``jvp``, and those that are ``needed`` for ``backward``.

    Forward mode reads them at once and lets go; what backward does not need is not held until then. Under vmap
    both sets must be the same, since functorch notes the batch dimensions of one set only.
    """
    ctx.save_for_forward(*tensors)
    if isinstance(ctx, BackwardCFunction):
        tensors = tuple(tensor if keep else None for tensor, keep in zip(tensors, needed, strict=True))
    ctx.save_for_backward(*tensors)


def total(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there: the chain rule over those arguments that have a tangent."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    with outer_tangents():
        result = present[0]
        for term in present[1:]:
            result = result + term
    return result


def linear_pair(
    names: tuple[str, str], formula: Callable[..., Tensor], adjoint: Callable[..., Tensor]
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Two formulas, linear in their first argument and each other's adjoint, made differentiable by one another.

    The derivative of what is linear is itself: forward mode applies it to the tangent, backward its adjoint to the
    gradient, to any order. Both take (x, held, geometry): ``held``, a tensor, has no gradient.
    """
    pair: list[Callable[..., Tensor]] = []

    def made(name: str, own: Callable[..., Tensor], itself: int) -> Callable[..., Tensor]:
        class Linear(Function):
            __doc__ = own.__doc__
            generate_vmap_rule = True

            @staticmethod
            def forward(x: Tensor, held: Tensor, geometry: Any) -> Tensor:
                return own(x, held, geometry)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
                _, held, ctx.geometry = inputs
                save(ctx, held, needed=(True,))

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
                (held,) = ctx.saved_tensors
                return pair[1 - itself](g, held, ctx.geometry), None, None

            @staticmethod
            def jvp(ctx: Any, x_t: Tensor, *_: None) -> Tensor:
                (held,) = ctx.saved_tensors
                return pair[itself](x_t, held, ctx.geometry)

        return differentiable(type(name, (Linear,), {}))

    pair += [made(names[0], formula, 0), made(names[1], adjoint, 1)]
    return pair[0], pair[1]


def outer_tangents() -> AbstractContextManager:
    """Inside a ``jvp``: lets an enclosing forward mode see what plain operators do with tangents.

    PyTorch switches forward mode off while a ``jvp`` runs. Functions get it back from functorch, plain operators do
    not, and forward mode over forward mode would lose their part without a word. To be used on tangents and on what
    Functions returned: a saved input still has a tangent of this level, and its products are for ``products.py``.
    """
    return forward_ad._set_fwd_grad_enabled(True)
