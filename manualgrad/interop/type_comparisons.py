"""Comparisons of exact types in the source of a model, such as ``type(layer) is nn.Linear``.

A converted layer is a subclass of its native one, so such a comparison has another result than before. They are found
and listed; nothing is changed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from manualgrad.interop.known_values import (
    UNKNOWN,
    defaults_of,
    is_library,
    is_model_code,
    static_attribute,
    variable_of,
)
from manualgrad.interop.report import Left, type_name
from manualgrad.interop.rewritten_class import KEPT_METHODS, ORIGINAL_FORWARD, original_class
from manualgrad.interop.source_code import SourceUnavailable, find_definition, nested_codes

LOOKUPS = {"get", "pop", "index", "count", "__contains__", "__getitem__"}  # methods of tables that take a key
COMPARISONS = (ast.Is, ast.IsNot, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
Comparison = tuple[str, str, set[type] | None]  # function, file and line, classes compared with (None: unknown)


def find_type_comparisons(model: nn.Module, changed: set[type]) -> list[Left]:
    """List the methods of ``model``'s modules that compare the type of a module with one of ``changed``.

    ``changed`` are the types of the modules that have another type now. Functions of the model's code that the
    methods name are searched too.
    """
    entries: list[Left] = []
    by_kind: dict[type, list[Comparison]] = {}
    for name, module in model.named_modules():
        kind = original_class(module) or type(module)
        own_forward = vars(module).get(ORIGINAL_FORWARD, vars(module).get("forward"))
        comparisons = list(_comparisons([getattr(own_forward, "__func__", own_forward)], module, set()))
        if not is_library(kind):
            if kind not in by_kind:
                by_kind[kind] = list(_comparisons(list(_methods(kind)), module, set()))
            comparisons += by_kind[kind]
        for function, place, kinds in comparisons:
            compared = changed if kinds is None else kinds & changed
            if compared:
                names = "a class" if kinds is None else " and ".join(sorted(map(type_name, compared)))
                why = f"compares an exact type with {names}, {place}: ours is a subclass; isinstance works"
                entries.append(Left(name, function, why))
    return entries


def _methods(kind: type) -> Iterator[Any]:
    """Methods of ``kind`` that belong to the model's code, except those that make an instance."""
    for base in kind.__mro__:
        if not is_library(base):
            for name, member in vars(base).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if name not in KEPT_METHODS:
                    yield function


def _comparisons(functions: list[Any], module: nn.Module, visited: set[Any]) -> Iterator[Comparison]:
    for function in functions:
        while isinstance(getattr(function, "__wrapped__", None), FunctionType):
            function = function.__wrapped__
        if not is_model_code(function) or function in visited:
            continue
        visited.add(function)
        names = {name for code in nested_codes(function.__code__) for name in (*code.co_names, *code.co_freevars)}
        if "type" in names or "__class__" in function.__code__.co_names:
            yield from _in_function(function, module)
        yield from _comparisons([variable_of(function, name) for name in names], module, visited)


def _in_function(function: FunctionType, module: nn.Module) -> Iterator[Comparison]:
    file, line = function.__code__.co_filename, function.__code__.co_firstlineno
    try:
        node = find_definition(function).node
    except SourceUnavailable:
        yield function.__qualname__, f"{file}:{line}, whose source is not available,", None
        return
    finder = _Finder(function, module)
    finder.visit(node)
    yield from ((function.__qualname__, f"{file}:{line}", kinds) for line, kinds in finder.classes_by_line.items())


class _Finder(ast.NodeVisitor):
    """Finds comparisons of types in one function.

    Attributes:
        classes_by_line: line, and the classes that a type is compared with there; None if they are not known.
    """

    def __init__(self, function: FunctionType, module: nn.Module) -> None:
        self.function, self.module, self.classes_by_line = function, module, dict[int, set[type] | None]()
        codes = list(nested_codes(function.__code__))
        self.local_names = {name for code in codes for name in (*code.co_varnames, *code.co_cellvars)}
        self.type_names: set[str] = set()  # local variables that hold the type of something

    def visit_Assign(self, node: ast.Assign) -> None:
        if self.is_type(node.value):
            self.type_names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.type_names |= {node.target.id} if self.is_type(node.value) else set()
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for a, b, operator in zip(operands, operands[1:], node.ops, strict=False):
            if isinstance(operator, COMPARISONS):
                self.check(node.lineno, a, b)
                self.check(node.lineno, b, a)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.check(node.lineno, node.slice, node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in LOOKUPS and node.args:
            self.check(node.lineno, node.args[0], node.func.value)
        self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> None:
        for case in node.cases:
            if isinstance(case.pattern, ast.MatchValue):
                self.check(case.pattern.lineno, node.subject, case.pattern.value)
        self.generic_visit(node)

    def check(self, line: int, node: ast.expr, other: ast.expr) -> None:
        """Note a comparison of ``node`` with ``other``, or a search of it in ``other``, if ``node`` is a type."""
        if self.is_type(node) and not self.is_type(other):
            kinds = self.classes_in(other)
        elif self.is_text(node):
            kinds = None
        else:
            return
        known = self.classes_by_line.setdefault(line, set())
        self.classes_by_line[line] = None if kinds is None or known is None else known | kinds

    def is_type(self, node: ast.expr) -> bool:
        """Return True for ``type(x)``, ``x.__class__`` and a variable that holds one of them."""
        if isinstance(node, ast.NamedExpr):
            return self.is_type(node.value)
        if isinstance(node, ast.Name):
            return node.id in self.type_names
        if isinstance(node, ast.Attribute):
            return node.attr == "__class__"
        return isinstance(node, ast.Call) and len(node.args) == 1 and self.value_of(node.func) is type

    def is_text(self, node: ast.expr) -> bool:
        """Return True for ``str(type(x))`` and ``type(x).__module__``, which name our module."""
        if isinstance(node, ast.Attribute):
            return node.attr == "__module__" and self.is_type(node.value)
        is_call = isinstance(node, ast.Call) and len(node.args) == 1 and self.value_of(node.func) in (str, repr)
        return is_call and isinstance(node, ast.Call) and self.is_type(node.args[0])

    def classes_in(self, node: ast.expr) -> set[type] | None:
        """The classes that an expression is or holds, or None if that is not known before the call."""
        parts: list[ast.expr | None] | None = None
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            parts = [*node.elts]
        elif isinstance(node, ast.Dict):
            parts = [*node.keys]
        if parts is not None:
            sets = [self.classes_in(part) for part in parts if part is not None]
            return None if None in sets else {kind for kinds in sets if kinds for kind in kinds}
        if isinstance(node, ast.Constant):
            return set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys":
            node = node.func.value
        value = self.value_of(node)
        if value is UNKNOWN:
            return None
        values = value if isinstance(value, (dict, list, tuple, set, frozenset)) else [value]
        return {item for item in values if isinstance(item, type)}

    def value_of(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            if node.id in self.local_names:
                is_self = node.id == self.function.__code__.co_varnames[:1][0]
                return self.module if is_self else defaults_of(self.function).get(node.id, UNKNOWN)
            return variable_of(self.function, node.id)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        base = self.value_of(node.value)
        return UNKNOWN if base is UNKNOWN else static_attribute(base, node.attr)
