"""Calls of the public functions while ``torch.fx`` or ``torch.jit.trace`` traces a model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from torch import Tensor, fx
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # torch's types leave out a documented name
from torch.overrides import handle_torch_function, has_torch_function

from manualgrad._torch_compat import jit_tracing_state, set_jit_tracing_state

P = ParamSpec("P")
R = TypeVar("R")


def traceable(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` in a form that tracers can trace.

    ``torch.fx`` records a call with a proxy as one node, as it does for PyTorch's functions. ``torch.jit.trace``
    records the formula's operators; its warnings about sizes that a branch reads are suppressed, since all branches
    of a formula compute the same.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(arguments) and any(isinstance(argument, fx.Proxy) for argument in arguments):
            result: R = handle_torch_function(call, arguments, *args, **kwargs)
            return result
        if jit_tracing_state():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TracerWarning)
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def inside_traceable(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function that :func:`traceable` wrapped, for a caller that is traceable itself: it costs less."""
    wrapped: Callable[P, R] = function.__wrapped__  # type: ignore[attr-defined]  # set by functools.wraps
    return wrapped


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function``, which computes no tensor, in a form that ``torch.jit.trace`` does not trace.

    Sizes are integers in it, and constants of the traced graph. In traced code they are tensors, and the graph has a
    few nodes for each size that is read.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        state = jit_tracing_state()
        if not state:
            return function(*args, **kwargs)
        set_jit_tracing_state(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_jit_tracing_state(state)

    return call


@untraced
def constant_shape(x: Tensor) -> tuple[int, ...]:
    """Shape of ``x``, whose sizes are constants of the traced graph; its batch size must not be among those used."""
    return x.shape


class NotScriptable:
    """Base of our layers, which ``torch.jit.script`` cannot compile: their derivatives are written in Python."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise TypeError. ``torch.jit.script`` calls this method of each layer before it compiles anything."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__module__}.{type(self).__name__}, whose derivatives are "
            "written in Python; compile manualgrad.to_torch(model), which computes the same, or use torch.jit.trace"
        )
