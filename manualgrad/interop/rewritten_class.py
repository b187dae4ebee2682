"""A subclass of a module's class with rewritten methods."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, NoReturn

from torch import nn

from manualgrad.interop.calls import Calls
from manualgrad.interop.known_values import (
    ATTRIBUTE_FUNCTIONS,
    Owner,
    attributes_with_functions,
    is_model_code,
    note_functions,
)
from manualgrad.interop.rewriting import clear_cache, rewrite
from manualgrad.network.call_chains import child_roles

ORIGINAL_CLASS, FUNCTIONAL = "_original_class", "_replaces_functions"
OWN_FORWARD, ORIGINAL_FORWARD = "_manualgrad_forward", "_manualgrad_original_forward"
KEPT_METHODS = {"__init__", "__new__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that ``module`` had before :func:`rewrite_methods`, or None if its class was not changed."""
    return vars(type(module)).get(ORIGINAL_CLASS)


def replaces_functions(module: nn.Module) -> bool:
    """Return True if the methods of ``module`` were rewritten, and not only in chains of layers."""
    return bool(vars(type(module)).get(FUNCTIONAL))


def rewrite_methods(module: nn.Module, functional: bool = True) -> Calls:
    """Change the class of ``module`` to one with rewritten methods, if they have calls that are replaced.

    With ``functional=False`` only chains of layers are (``chain_rewriting.py``).

    Returns:
        The calls in all methods of the class.
    """
    forward = vars(module).get("forward")
    is_method = isinstance(forward, MethodType) and forward.__self__ is module
    own_forward = forward.__func__ if is_method and isinstance(forward, MethodType) else forward
    if not is_model_code(own_forward):
        own_forward = None
    base: Any = type(module)
    functions, roles = tuple(attributes_with_functions(module).items()), tuple(child_roles(module).items())
    kind, calls = _rewritten_class(base, own_forward, is_method, functions, roles, functional)
    if kind is not base:
        module.__class__ = kind
    if OWN_FORWARD in vars(kind):
        vars(module)[ORIGINAL_FORWARD], vars(module)["forward"] = forward, getattr(module, OWN_FORWARD)
    return calls


def restore_methods(module: nn.Module) -> None:
    """Undo :func:`rewrite_methods`."""
    base = original_class(module)
    assert base is not None
    vars(module).update(_native_state(module, vars(module)))
    vars(module).pop(ORIGINAL_FORWARD, None)
    module.__class__ = base


@functools.lru_cache(maxsize=512)
def _rewritten_class(
    base: type[nn.Module],
    own_forward: FunctionType | None,
    is_method: bool,
    functions: tuple[tuple[str, Any], ...],
    roles: tuple[tuple[str, str], ...],
    functional: bool,
) -> tuple[type[nn.Module], Calls]:
    """(a subclass of ``base``, of the same name, with rewritten methods, or ``base``; the calls in the methods).

    ``own_forward`` is the forward of an instance, which it calls as a method or as a plain function.
    """
    owner = Owner(base, dict(functions), dict(roles), functional)
    calls, members = Calls(), dict[str, Any]()
    if own_forward is not None:
        new, calls = rewrite(own_forward, owner if is_method else None)
        if new is not None:
            members[OWN_FORWARD] = new if is_method else staticmethod(new)
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
    names[FUNCTIONAL] = functional
    return type(base.__name__, (base,), names | members | calls.super_methods), calls


def clear_caches() -> None:
    """Forget rewritten classes, so that the next conversion sees functions that were defined anew."""
    ATTRIBUTE_FUNCTIONS.clear()
    forget_rewritten()


def forget_rewritten() -> None:
    """Forget rewritten classes and functions alone."""
    _rewritten_class.cache_clear()
    clear_cache()


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    base = original_class(module)
    assert base is not None
    state = object.__reduce_ex__(module, max(protocol, 2))[2]
    return _new_instance, (base, replaces_functions(module)), _native_state(module, state)


def _native_state(module: nn.Module, state: Any) -> Any:
    """``state`` with the forward that an instance had before it was rewritten."""
    if not isinstance(state, dict) or ORIGINAL_FORWARD not in state:
        return state
    native = {name: value for name, value in state.items() if name != ORIGINAL_FORWARD}
    if native.get("forward") == getattr(module, OWN_FORWARD):  # otherwise it has another one since then
        native["forward"] = state[ORIGINAL_FORWARD]
    return native


def _refuse_script(module: nn.Module) -> NoReturn:
    """Raise TypeError. ``torch.jit.script`` would compile the source, which has the native calls."""
    raise TypeError(
        f"torch.jit.script cannot compile {type(module).__name__}, whose calls were replaced; compile "
        "manualgrad.to_torch(model), which computes the same, or use torch.jit.trace"
    )


def _new_instance(base: type[nn.Module], functional: bool = True) -> nn.Module:
    """A module without attributes, to which ``copy`` and ``pickle`` add the state."""
    members = {"__setstate__": _set_state, ORIGINAL_CLASS: base, FUNCTIONAL: functional}
    kind: type[nn.Module] = type(base.__name__, (base,), members)
    return kind.__new__(kind)


def _set_state(module: nn.Module, state: Any) -> None:
    base, functional = original_class(module), replaces_functions(module)
    assert base is not None
    module.__class__ = base
    module.__setstate__(state)  # type: ignore[no-untyped-call]  # torch ships it untyped
    if note_functions(module):
        forget_rewritten()
    rewrite_methods(module, functional)
