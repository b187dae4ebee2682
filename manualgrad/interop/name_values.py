"""Values that expressions in one function have before it is called: of its names, and of attributes of names."""

from __future__ import annotations

import ast
from types import FunctionType
from typing import Any

from torch import Tensor

from manualgrad.interop.known_values import (
    ATTRIBUTE_FUNCTIONS,
    UNKNOWN,
    Owner,
    defaults_of,
    functions_in,
    static_attribute,
    variable_of,
)
from manualgrad.interop.source_code import nested_codes

SELF, LOCAL = object(), object()  # the values of ``self`` and of a local variable


class NameValues:
    """Values in ``function``, a method of ``owner`` or any other function.

    Attributes:
        own_name: name of the first parameter of a method, else None.
    """

    def __init__(self, function: FunctionType, owner: Owner | None) -> None:
        self.function, self.owner = function, owner
        codes = list(nested_codes(function.__code__))
        self.local_names = {name for code in codes for name in (*code.co_varnames, *code.co_cellvars)}
        self.own_name = function.__code__.co_varnames[0] if owner and function.__code__.co_argcount else None
        self.defaults = defaults_of(function)

    def value_of(self, node: ast.expr) -> Any:
        """The value of a name or of attributes of a name, as far as it is known before the call."""
        if isinstance(node, ast.Name):
            if node.id in self.local_names:
                return SELF if node.id == self.own_name else LOCAL
            return variable_of(self.function, node.id)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        base = self.value_of(node.value)
        if base is SELF and self.owner:
            return self.owner.attribute(node.attr)
        if any(base is unknown for unknown in (UNKNOWN, SELF, LOCAL)) or isinstance(base, Tensor):
            return UNKNOWN
        return static_attribute(base, node.attr)

    def functions_held(self, node: ast.expr) -> list[Any]:
        """Functions that an expression may be: those of a default, a table, an object or a module inside this one."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # a table's method, such as get
            node = node.func.value
        item = node.value if isinstance(node, ast.Subscript) else node
        if isinstance(item, ast.Name) and self.value_of(item) is LOCAL:
            return self._functions_of_variable(item)
        while isinstance(item, (ast.Name, ast.Attribute, ast.Subscript)):
            held = functions_in(self.value_of(item))
            if isinstance(item, ast.Attribute) and not held and self.value_of(item.value) is not SELF:
                held = list(ATTRIBUTE_FUNCTIONS.get(item.attr, ()))  # of another module
            if held:
                return held
            item = item.value if not isinstance(item, ast.Name) else ast.Constant(None)
        return []

    def _functions_of_variable(self, node: ast.Name) -> list[Any]:
        """Functions that a local variable may be: a default value, or held by any table that the function names."""
        tables: list[Any] = [*self.owner.functions.values()] if self.owner else []
        tables = [value for value in tables if isinstance(value, tuple)]
        names = {
            name for code in nested_codes(self.function.__code__) for name in (*code.co_names, *code.co_freevars)
        }
        values = (variable_of(self.function, name) for name in names)
        tables += [value for value in values if isinstance(value, (dict, list, tuple))]
        return list(dict.fromkeys(functions_in([self.defaults.get(node.id), *tables])))
