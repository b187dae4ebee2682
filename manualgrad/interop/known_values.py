"""Values that names in a function have before it is called, found without running code of the model."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manualgrad.interop.layers import COUNTERPARTS
from manualgrad.interop.native_calls import (
    FUNCTION_TYPES,
    METHOD_NAMES,
    NATIVE_FUNCTIONS,
    is_replaceable,
    without_partials,
)
from manualgrad.interop.source_code import nested_codes

LIBRARIES = {"torch", "manualgrad", "numpy", *sys.stdlib_module_names}
NAMESPACES = (F, torch, torch.special)
HELD_TYPES = (*FUNCTION_TYPES, MethodType, functools.partial, torch.jit.ScriptFunction)
MAX_DEPTH, MAX_LENGTH = 3, 1000  # of the tables that are searched for functions
# Functions among the attributes of all modules that are converted, by attribute; the inner values are not used.
ATTRIBUTE_FUNCTIONS: dict[str, dict[Any, None]] = {}
UNKNOWN = object()  # a value that only the call knows


@dataclass(frozen=True)
class Owner:
    """The class whose methods are rewritten.

    Attributes:
        kind: the class of a module.
        functions: the functions among the attributes of a module's instance, such as ``self.activation``, and a
            tuple of functions for each attribute that holds some: a list, tuple, dict or object.
        roles: the roles of a module's children in chains of calls, by name (``network/call_chains.py``).
        functional: False if only chains of layers are rewritten, and calls of functions stay native.
    """

    kind: type
    functions: Mapping[str, Any]
    roles: Mapping[str, str] = field(default_factory=dict)
    functional: bool = True

    def attribute(self, name: str) -> Any:
        """A function or a table of functions that ``self.name`` is, else UNKNOWN."""
        if name in self.functions:
            return self.functions[name]
        if name == "__class__":
            return self.kind
        value = static_attribute(self.kind, name)
        return value if functions_in(value) and not is_model_code(value) else UNKNOWN


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


def functions_in(value: Any, depth: int = MAX_DEPTH) -> list[Any]:
    """Native functions that manualgrad has, and functions of the model's code, in a table or an object.

    A table is a list, tuple or dict, and may hold other tables.
    """
    function = without_partials(value)
    if is_replaceable(function) or is_model_code(function):
        return [function]
    items: Iterable[Any] = ()
    if isinstance(value, dict):
        items = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif is_plain_object(value):
        items = vars(value).values()
    if depth == 0:
        return []
    return [function for item in islice(items, MAX_LENGTH) for function in functions_in(item, depth - 1)]


def is_namespace(value: Any) -> bool:
    """Return True for a module of PyTorch that has native functions."""
    return any(value is namespace for namespace in NAMESPACES)


def attributes_with_functions(module: nn.Module) -> dict[str, Any]:
    """Functions among the attributes of ``module``, and a tuple of functions for each attribute that holds some."""
    functions: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, HELD_TYPES) and name != "forward":
            functions[name] = value
        elif name[0] != "_" and (held := functions_in(value)):
            functions[name] = tuple(held)
    return functions


def note_functions(model: nn.Module) -> bool:
    """Add the functions among the attributes of all modules of ``model``; return True if some are new."""
    count = sum(map(len, ATTRIBUTE_FUNCTIONS.values()))
    kinds: dict[type, None] = {}
    for module in model.modules():
        kinds[type(module)] = None
        for name, value in attributes_with_functions(module).items():
            ATTRIBUTE_FUNCTIONS.setdefault(name, {}).update(dict.fromkeys(functions_in(value)))
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__ if not is_library(base)):
        for name, value in vars(base).items():
            if not isinstance(value, (FunctionType, classmethod)) and name[0] != "_":
                held = functions_in(value.__func__ if isinstance(value, staticmethod) else value)
                ATTRIBUTE_FUNCTIONS.update({name: dict.fromkeys(held)} if held else {})
    return sum(map(len, ATTRIBUTE_FUNCTIONS.values())) > count


def is_plain_object(value: Any) -> bool:
    """Return True for an instance of a class of the model's code, or a namespace, that is no module."""
    if isinstance(value, (Tensor, nn.Module, type, ModuleType)) or not hasattr(value, "__dict__"):
        return False
    return isinstance(value, SimpleNamespace) or not is_library(type(value))


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
    if names & METHOD_NAMES or names & ATTRIBUTE_FUNCTIONS.keys() or "super" in names:
        return True
    if owner and (
        names & owner.functions.keys() or any(owner.attribute(name) is not UNKNOWN for name in names - {"__class__"})
    ):
        return True
    values = [*defaults_of(function).values(), *(variable_of(function, name) for name in names)]
    if names & {"getattr", "vars", "ops"} and any(map(is_namespace, values)):
        return True
    values += [item for value in values for item in functions_in(value)]
    for value in list(values):
        if isinstance(value, ModuleType):
            values += [vars(value)[name] for name in names if name in vars(value)]
        elif not is_library(value if isinstance(value, (FunctionType, type)) else type(value)):
            values += [static_attribute(value, name) for name in names]
    for value in map(without_partials, values):
        if is_replaceable(value) or id(value) in NATIVE_FUNCTIONS or isinstance(value, torch.jit.ScriptFunction):
            return True
        if isinstance(value, type) and value in COUNTERPARTS:
            return True
        if is_model_code(value) and value not in visited and may_call(value, None, visited):
            return True
    return False
