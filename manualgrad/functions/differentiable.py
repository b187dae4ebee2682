"""What every hand-derived Function shares: how it is called, and what it keeps for its derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import BackwardCFunction


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """``function.apply``, fit for ``torch.compile`` as well.

    TorchDynamo refuses a Function that has a ``jvp``, and never uses it: a compiled graph runs in reverse mode
    alone. While it traces, it is given a twin without one. Everywhere else, forward mode is ours.
    """
    # Function.apply binds arguments by inspect.signature; known beforehand, each call is a third faster.
    function.forward.__signature__ = inspect.signature(function.forward)
    reverse_only = type(function.__name__, (function,), {"jvp": Function.jvp, "__doc__": function.__doc__})

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return reverse_only.apply(*args)
        return function.apply(*args)

    apply.__name__ = apply.__qualname__ = function.__name__
    apply.__doc__ = function.__doc__
    return apply


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


def outer_tangents() -> AbstractContextManager:
    """Inside a ``jvp``: lets an enclosing forward mode see what plain operators do with tangents.

    PyTorch switches forward mode off while a ``jvp`` runs. Functions get it back from functorch, plain operators
    do not, and forward mode over forward mode would lose their part without a word. To be used on tangents only:
    a saved input still has a tangent of this level.
    """
    return forward_ad._set_fwd_grad_enabled(True)
