"""Calls of ``torch.autograd.Function``s: what their forward gets, what their backward gets and returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass
class FunctionCall:
    """One call.

    Attributes:
        forward: the function that is called, which takes ``ctx`` first if ``has_context``.
        arguments: those after ``ctx``.
        ctx: that of the call; None until ``setup_context`` gets it.
        received: the gradients that backward gets.
        returned: those that it returns.
    """

    forward: Callable[..., Any]
    arguments: tuple[Any, ...]
    has_context: bool
    ctx: Any = None
    received: tuple[Tensor | None, ...] = ()
    returned: tuple[Any, ...] = ()

    @property
    def returns_other_shapes(self) -> bool:
        """True if a gradient has another shape than its input: autograd sums it then."""
        pairs = zip(self.arguments, self.returned, strict=False)
        return any(isinstance(a, Tensor) and isinstance(g, Tensor) and a.shape != g.shape for a, g in pairs)


def classes_of(functions: Collection[Any]) -> list[type[Function]]:
    """Functions of which forward or backward is one of these."""
    classes, left = [], [Function]
    while left:
        own = left.pop()
        left += own.__subclasses__()
        methods = [vars(own).get(name) for name in ("forward", "backward")]
        if own is not Function and any(getattr(each, "__func__", each) in functions for each in methods):
            classes.append(own)
    return classes


@contextmanager
def watched(
    classes: Sequence[type[Function]], before_forward: Callable[[FunctionCall], None] | None = None
) -> Iterator[list[FunctionCall]]:
    """Note every call of the classes. ``before_forward`` is called before each forward."""
    calls: list[FunctionCall] = []
    with ExitStack() as stack:
        for each in classes:
            stack.enter_context(_watched_class(each, calls, before_forward))
        yield calls


@contextmanager
def _watched_class(
    own: type[Function], calls: list[FunctionCall], before_forward: Callable[[FunctionCall], None] | None
) -> Iterator[None]:
    forward, setup, backward = own.forward, own.setup_context, own.backward
    has_context = setup is Function.setup_context

    def watched_forward(*args: Any) -> Any:
        if not torch.is_grad_enabled():  # otherwise it is a call with derivatives of before_forward's
            call = (
                FunctionCall(forward, args[1:], True, args[0]) if has_context else FunctionCall(forward, args, False)
            )
            calls.append(call)
            if before_forward is not None:
                before_forward(call)
        return forward(*args)

    def watched_setup(ctx: Any, inputs: Any, output: Any) -> None:
        if calls:
            calls[-1].ctx = ctx
        setup(ctx, inputs, output)

    def watched_backward(ctx: Any, *gradients: Any) -> Any:
        returned = backward(ctx, *gradients)
        for call in calls:
            if call.ctx is ctx:
                call.received, call.returned = gradients, returned if isinstance(returned, tuple) else (returned,)
        return returned

    replaced = {"forward": watched_forward, "backward": watched_backward}
    if not has_context:
        replaced["setup_context"] = watched_setup
    present = {name: vars(own)[name] for name in replaced if name in vars(own)}
    try:
        for name, function in replaced.items():
            setattr(own, name, staticmethod(function))
        yield
    finally:
        for name in replaced:
            if name in present:
                setattr(own, name, present[name])
            else:
                delattr(own, name)
