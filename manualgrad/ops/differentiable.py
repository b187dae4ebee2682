"""The parts that all hand-derived Functions share: the call of a Function, and the tensors that it saves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import (
    BackwardContext,
    is_forward_mode_active,
    is_functorch_active,
    jit_tracing_state,
    set_forward_mode_enabled,
)


@dataclass
class PositionalArguments:
    """Arguments bound by :class:`PositionalSignature`, unchanged."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def apply_defaults(self) -> None:
        """Do nothing: there are no defaults."""


class PositionalSignature(inspect.Signature):
    """Signature without defaults whose arguments are all passed by position.

    ``Function.apply`` binds its arguments at each call, which takes longer than the rest of the call. With this
    signature there is nothing to bind.
    """

    __slots__ = ()

    # inspect returns a BoundArguments here; Function.apply reads its args and kwargs and calls apply_defaults
    def bind(self, *args: Any) -> PositionalArguments:  # type: ignore[override]
        """Return ``args`` as they are."""
        return PositionalArguments(args)


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """Return ``function.apply`` in a form that ``torch.compile`` accepts and that costs less per call.

    TorchDynamo refuses a Function with a ``jvp``, although a compiled graph runs in reverse mode only. While it
    traces, a subclass without ``jvp`` is applied. Where nothing will be differentiated, as in most backward passes,
    only ``forward`` is called. So it is while ``torch.jit.trace`` traces: its graphs cannot be saved with a Function.
    Outside of ``torch.func`` a subclass whose ``forward`` takes the context is applied, since PyTorch binds the
    arguments of other Functions to their signature at each call.
    """
    forward: Callable[..., Any] = function.forward
    forward.__signature__ = PositionalSignature.from_callable(forward)  # type: ignore[attr-defined]
    reverse_only: type[Function] = type(
        function.__name__, (function,), {"jvp": Function.jvp, "__doc__": function.__doc__}
    )

    setup_context: Callable[..., None] = function.setup_context

    def forward_with_context(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    eager: type[Function] = type(
        function.__name__,
        (function,),
        {
            "forward": staticmethod(forward_with_context),
            "setup_context": Function.setup_context,
            "__doc__": function.__doc__,
        },
    )

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return reverse_only.apply(*args)
        if jit_tracing_state():
            return forward(*args)
        if is_functorch_active():
            return function.apply(*args)
        if (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()) or is_forward_mode_active():
            return eager.apply(*args)
        return forward(*args)

    apply.__name__ = apply.__qualname__ = function.__name__
    apply.__doc__ = function.__doc__
    return apply


def autograd_inactive() -> bool:
    """Return True if no mode of differentiation is active: reverse, forward, ``torch.func`` or a compiler."""
    return not (
        torch.compiler.is_compiling() or is_grad_recorded() or is_forward_mode_active() or is_functorch_active()
    )


def is_grad_recorded() -> bool:
    """Return True if autograd records operations: in inference mode it does not, even under ``enable_grad``."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def save_for_derivatives(ctx: Any, *tensors: Tensor | None, needed: Sequence[bool]) -> None:
    """Save ``tensors`` for ``jvp``, and for ``backward`` those whose entry of ``needed`` is True.

    Forward mode reads the tensors at once and frees them. Tensors that backward does not need are not kept alive.
    Under vmap both sets must be the same, since functorch records the batch dimensions of one set only.
    """
    is_backward = isinstance(ctx, BackwardContext)
    if not is_backward or is_forward_mode_active():  # torch.func.jvp is such a mode too
        ctx.save_for_forward(*tensors)
    if is_backward:
        tensors = tuple([tensor if keep else None for tensor, keep in zip(tensors, needed, strict=True)])
    ctx.save_for_backward(*tensors)


def sum_present(*terms: Tensor | None) -> Tensor | None:
    """Sum of the terms that are not None, or None: the chain rule over the arguments that have a tangent."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    with outer_forward_mode():
        result = present[0]
        for term in present[1:]:
            result = result + term
    return result


def outer_forward_mode() -> AbstractContextManager[Any]:
    """Context manager for use inside a ``jvp``: plain operators propagate the tangents of an enclosing forward mode.

    PyTorch switches forward mode off while a ``jvp`` runs. Functions get it back from functorch, plain operators do
    not, so forward mode over forward mode would silently lose their contribution. Inside the block use only tangents
    and results of Functions. A saved input still has a tangent of this level; multiply it with ``products.py``.
    """
    return set_forward_mode_enabled(True)
