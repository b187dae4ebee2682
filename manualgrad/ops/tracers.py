"""Calls of the public functions while ``torch.fx`` or ``torch.jit.trace`` traces a model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from torch import Tensor, fx
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # torch's types leave out a documented name
from torch.overrides import handle_torch_function, has_torch_function

from manualgrad._torch_compat import jit_tracing_state

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
        arguments = (*args, *kwargs.values())
        if has_torch_function(arguments) and any(isinstance(argument, fx.Proxy) for argument in arguments):
            result: R = handle_torch_function(call, arguments, *args, **kwargs)
            return result
        if jit_tracing_state():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TracerWarning)
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def as_constant(size: int | Tensor) -> int:
    """Return ``size`` as a constant of the traced graph: ``torch.jit.trace`` represents sizes by tensors."""
    return int(size) if isinstance(size, Tensor) else size


class NotScriptable:
    """Base of our layers, which ``torch.jit.script`` cannot compile: their derivatives are written in Python."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise TypeError. ``torch.jit.script`` calls this method of each layer before it compiles anything."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__module__}.{type(self).__name__}, whose derivatives are "
            "written in Python; compile manualgrad.to_torch(model), which computes the same, or use torch.jit.trace"
        )
