"""Values that names in a function have before it is called, found without running code of the model."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from manualgrad.interop.native_calls import FUNCTION_TYPES, METHODS, is_replaceable
from manualgrad.interop.source_code import nested_codes

LIBRARIES = {"torch", "manualgrad", "numpy", *sys.stdlib_module_names}
NATIVE_FUNCTIONS = {
    id(value): name
    for name, value in vars(F).items()
    if isinstance(value, FUNCTION_TYPES) and name[0] != "_" and value.__module__ != "torch.overrides"
}
UNKNOWN = object()  # a value that only the call knows


@dataclass(frozen=True)
class Owner:
    """The class whose methods are rewritten.

    Attributes:
        kind: the class of a module.
        functions: the functions among the attributes of a module's instance, such as ``self.activation``, and a
            tuple of functions for each list, tuple or dict that holds some.
    """

    kind: type
    functions: Mapping[str, Any]


def is_library(value: FunctionType | type) -> bool:
    """Return True for a function or class of a library, whose calls stay as they are."""
    return (value.__module__ or "").partition(".")[0] in LIBRARIES


def is_model_code(value: Any) -> bool:
    """Return True for a Python function that belongs to no such library."""
    return isinstance(value, FunctionType) and not is_library(value)


def variable_of(function: FunctionType, name: str) -> Any:
    """Value of a variable of the closure, a global or a builtin."""
    if name in function.__code__.co_freevars and function.__closure__:
        return content_of(function.__closure__[function.__code__.co_freevars.index(name)])
    return function.__globals__.get(name, vars(builtins).get(name, UNKNOWN))


def defaults_of(function: FunctionType) -> dict[str, Any]:
    """Default values of parameters, by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return dict(zip(names, defaults, strict=True)) | (function.__kwdefaults__ or {})


def functions_in(value: Any) -> list[Any]:
    """Native functions that manualgrad has in a list, tuple or dict."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [item for item in values if is_replaceable(item)]


def content_of(cell: CellType) -> Any:
    """Value of a variable of a closure."""
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return UNKNOWN


def static_attribute(value: Any, name: str) -> Any:
    """The attribute without running code of the model, such as a property."""
    result = inspect.getattr_static(value, name, UNKNOWN)
    return result.__func__ if isinstance(result, (staticmethod, classmethod)) else result


def next_method(kind: type, after: Any, name: str) -> tuple[int, Any]:
    """The attribute ``name`` of the first base class of ``kind`` after the class ``after``, as ``super()`` finds it.

    Returns:
        (position of the base class, the attribute); the attribute is UNKNOWN if there is none.
    """
    order = kind.__mro__
    first = order.index(after) + 1 if after in order else len(order)
    members = ((index, vars(order[index])[name]) for index in range(first, len(order)) if name in vars(order[index]))
    return next(members, (len(order), UNKNOWN))


def may_call(function: FunctionType, owner: Owner | None, visited: set[FunctionType]) -> bool:
    """Return False if no name in the bytecode leads to a native function or to model code that may call one.

    This spares the search for the source of most functions.
    """
    visited.add(function)
    names = {name for code in nested_codes(function.__code__) for name in (*code.co_names, *code.co_freevars)}
    if names & METHODS.keys() or (owner and names & owner.functions.keys()) or "super" in names:
        return True
    values = [*defaults_of(function).values(), *(variable_of(function, name) for name in names)]
    values += [item for value in values for item in functions_in(value)]
    for value in list(values):
        if isinstance(value, ModuleType):
            values += [vars(value)[name] for name in names if name in vars(value)]
        elif not is_library(value if isinstance(value, (FunctionType, type)) else type(value)):
            values += [static_attribute(value, name) for name in names]
    for value in values:
        if is_replaceable(value) or id(value) in NATIVE_FUNCTIONS or isinstance(value, torch.jit.ScriptFunction):
            return True
        if is_model_code(value) and value not in visited and may_call(value, None, visited):
            return True
    return False
