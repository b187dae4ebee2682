"""The functions and classes of the user that a function can reach by names, closures and attributes."""

from __future__ import annotations

import dis
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from compare.gradients.source_changes.called_functions import is_users, with_inner

MAX_OBJECTS = 5_000  # that are looked at
CONTAINERS = (dict, list, tuple, set, deque)
EMPTY = object()
STORES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR")


@dataclass
class Reached:
    """Places in which functions can keep something from call to call.

    Attributes:
        names: global names that the functions read, by the module's names and the name itself.
        stored: those that a function assigns.
        cells: the variables of outer functions.
    """

    functions: list[FunctionType] = field(default_factory=list)
    classes: list[type] = field(default_factory=list)
    names: dict[tuple[int, str], tuple[dict[str, Any], str]] = field(default_factory=dict)
    stored: dict[tuple[int, str], tuple[dict[str, Any], str]] = field(default_factory=dict)
    cells: list[CellType] = field(default_factory=list)


def find_reached(start: Iterable[Any]) -> Reached:
    """Everything of the user's that the objects can reach; of an object that is not the user's, nothing."""
    reached = Reached()
    todo, known = deque(start), dict[int, Any]()  # objects by their id, which is theirs as long as they are kept
    while todo and len(known) < MAX_OBJECTS:
        each = todo.popleft()
        if id(each) in known:
            continue
        known[id(each)] = each
        if isinstance(each, FunctionType):
            if is_users(each.__code__.co_filename):
                todo += _of_function(each, reached)
        elif isinstance(each, MethodType):
            todo += (each.__self__, each.__func__)
        elif isinstance(each, BuiltinMethodType):  # such as Function.apply
            todo.append(each.__self__)
        elif isinstance(each, (staticmethod, classmethod)):
            todo.append(each.__func__)
        elif isinstance(each, property):
            todo.append(each.fget)
        elif isinstance(each, functools.partial):
            todo += (each.func, *each.args, *each.keywords.values())
        elif isinstance(each, functools._lru_cache_wrapper):
            todo.append(each.__wrapped__)
        elif isinstance(each, type):
            if is_class_of_user(each):
                reached.classes.append(each)
                todo += (*vars(each).values(), *each.__bases__)
        elif isinstance(each, CONTAINERS):
            todo += each.values() if isinstance(each, dict) else each
        elif is_class_of_user(type(each)):
            todo += (type(each), *getattr(each, "__dict__", {}).values())
    return reached


def is_class_of_user(each: type) -> bool:
    """True for a class that is written in a file of the user's, or interactively."""
    module = sys.modules.get(each.__module__)
    if each.__module__ == "__main__" or (module is not None and is_users(getattr(module, "__file__", None) or "")):
        return True
    methods = (value for value in vars(each).values() if isinstance(value, FunctionType))
    return any(is_users(method.__code__.co_filename) for method in methods)


def _of_function(function: FunctionType, reached: Reached) -> Iterator[Any]:
    """Note a function of the user's; the objects that it reaches."""
    reached.functions.append(function)
    scope = function.__globals__
    codes = list(with_inner(function.__code__))
    names = dict.fromkeys(name for code in codes for name in code.co_names)
    scopes = [scope, *(vars(scope[n]) for n in names if n in scope and _is_module_of_user(scope[n]))]
    stored = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname in STORES}
    for each in scopes:
        reached.names.update(((id(each), name), (each, name)) for name in names if name in each)
        reached.stored.update(((id(each), name), (each, name)) for name in stored if name in each or each is scope)
        yield from (each[name] for name in names if name in each)
    cells = function.__closure__ or ()
    reached.cells += cells
    yield from (cell.cell_contents for cell in cells if not is_empty(cell))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()


def is_empty(cell: CellType) -> bool:
    """True for a variable of an outer function that has no value yet."""
    try:
        return cell.cell_contents is EMPTY
    except ValueError:
        return True


def _is_module_of_user(value: Any) -> bool:
    return isinstance(value, ModuleType) and is_users(getattr(value, "__file__", None) or "")
