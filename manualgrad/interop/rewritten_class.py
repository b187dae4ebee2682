"""A subclass of a module's class with rewritten methods."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn

from manualgrad.interop.calls import Calls
from manualgrad.interop.known_values import Owner, functions_in, is_model_code
from manualgrad.interop.native_calls import FUNCTION_TYPES
from manualgrad.interop.rewriting import clear_cache, rewrite

ORIGINAL_CLASS = "_original_class"
KEPT_METHODS = {"__init__", "__new__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}
HELD_TYPES = (*FUNCTION_TYPES, functools.partial, torch.jit.ScriptFunction)


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that ``module`` had before :func:`rewrite_methods`, or None if its class was not changed."""
    return vars(type(module)).get(ORIGINAL_CLASS)


def rewrite_methods(module: nn.Module) -> Calls:
    """Change the class of ``module`` to one with rewritten methods, if they have calls that are replaced.

    Returns:
        The calls in all methods of the class.
    """
    functions: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, HELD_TYPES):
            functions[name] = value
        elif isinstance(value, (list, tuple, dict)) and name[0] != "_":
            functions |= {name: held} if (held := tuple(functions_in(value))) else {}
    kind, calls = _rewritten_class(type(module), tuple(functions.items()))  # type: ignore[arg-type]  # a class is hashable
    if kind is not type(module):
        module.__class__ = kind
    return calls


@functools.lru_cache(maxsize=512)
def _rewritten_class(base: type[nn.Module], functions: tuple[tuple[str, Any], ...]) -> tuple[type[nn.Module], Calls]:
    """(a subclass of ``base``, of the same name, with rewritten methods, or ``base``; the calls in the methods)."""
    owner, calls, members = Owner(base, dict(functions)), Calls(), dict[str, Any]()
    for name in dict.fromkeys(name for kind in base.__mro__ for name in vars(kind)):
        member = inspect.getattr_static(base, name)
        is_wrapper = isinstance(member, (staticmethod, classmethod))
        function: Any = member.__func__ if is_wrapper else member.fget if isinstance(member, property) else member
        if name in KEPT_METHODS or not is_model_code(function):
            continue
        new, method_calls = rewrite(function, None if isinstance(member, staticmethod) else owner)
        calls.update(method_calls)
        if new is not None:
            members[name] = (
                property(new, member.fset, member.fdel) if isinstance(member, property)
                else type(member)(new) if is_wrapper else new
            )  # fmt: skip
    if not members:
        return base, calls
    if base.__reduce_ex__ is not object.__reduce_ex__ or base.__reduce__ is not object.__reduce__:
        reason = f"{base.__name__} has a __reduce__ of its own, whose copies would have the native forward"
        return base, replace(calls, replaced={}, left=calls.left | {name: reason for name, _ in calls.replaced})
    names: dict[str, Any] = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {"__reduce_ex__": _reduce, "__prepare_scriptable__": _refuse_script, ORIGINAL_CLASS: base}
    return type(base.__name__, (base,), names | members | calls.super_methods), calls


def clear_caches() -> None:
    """Forget rewritten classes, so that the next conversion sees functions that were defined anew."""
    _rewritten_class.cache_clear()
    clear_cache()


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    base = original_class(module)
    assert base is not None
    state = object.__reduce_ex__(module, max(protocol, 2))[2]
    return _new_instance, (base,), state


def _refuse_script(module: nn.Module) -> NoReturn:
    """Raise TypeError. ``torch.jit.script`` would compile the source, which has the native calls."""
    raise TypeError(
        f"torch.jit.script cannot compile {type(module).__name__}, whose functional calls were replaced; compile "
        "manualgrad.to_torch(model), which computes the same, or use torch.jit.trace"
    )


def _new_instance(base: type[nn.Module]) -> nn.Module:
    """A module without attributes, to which ``copy`` and ``pickle`` add the state."""
    kind: type[nn.Module] = type(base.__name__, (base,), {"__setstate__": _set_state, ORIGINAL_CLASS: base})
    return kind.__new__(kind)


def _set_state(module: nn.Module, state: Any) -> None:
    base = original_class(module)
    assert base is not None
    module.__class__ = base
    module.__setstate__(state)  # type: ignore[no-untyped-call]  # torch ships it untyped
    rewrite_methods(module)
