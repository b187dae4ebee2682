"""Small edits of a function's syntax tree, and which of its parts may be edited."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compare.gradients.source_changes.called_functions import CalledFunction

# Modules and builtins whose functions compute, and change nothing outside of the function.
PURE_MODULES = ("torch", "math", "cmath", "numpy", "itertools", "functools", "operator")
IMPURE_FUNCTIONS = {"save", "load", "set_default_dtype", "manual_seed", "seed", "compile", "set_num_threads"}
PURE_BUILTINS = {
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "isinstance", "iter", "len", "list",
    "map", "max", "min", "next", "pow", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple",
    "zip", "super",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The place of a node in its parent."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST | None) -> None:
        """Set the node at this place; None deletes a statement."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = ast.Pass() if node is None else node


@dataclass(frozen=True)
class Edit:
    """One edit: the nodes at some places are replaced.

    Attributes:
        changes: places, with the old and the new node of each; the new one is None for a statement left out.
        cost: how far the edit is from the source; edits of a smaller cost are tried first.
        kind: kind of the finding; one of :data:`compare.gradients.diagnosis.findings.KINDS`.
    """

    changes: tuple[tuple[Place, ast.AST, ast.AST | None], ...]
    cost: int
    kind: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make the edit in the tree, and take it back."""
        try:
            for place, _, new in self.changes:
                place.put(new)
            yield
        finally:
            for place, old, _ in self.changes:
                place.put(old)


@dataclass(frozen=True)
class Site:
    """A node that may be edited.

    Attributes:
        ancestors: nodes from the function to the parent.
    """

    node: Any
    place: Place
    ancestors: tuple[ast.AST, ...]

    def edit(self, new: ast.AST | None, cost: int, kind: str) -> Edit:
        """The edit that replaces this node."""
        return Edit(((self.place, self.node, new),), cost, kind)


def find_sites(called: CalledFunction, function: ast.FunctionDef | ast.Lambda) -> list[Site]:
    """Every expression and statement in the body of a function that may be edited.

    Loops that an edit could make endless, and calls that may do something else than to compute, are left out.
    """
    sites: list[Site] = []
    body = function.body if isinstance(function.body, list) else [function.body]
    field_is_list = isinstance(function.body, list)
    for n, node in enumerate(body):
        if n == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        _visit(node, Place(function, "body", n if field_is_list else None), (function,), called, sites)
    return sites


def _visit(
    node: ast.AST, place: Place, ancestors: tuple[ast.AST, ...], called: CalledFunction, sites: list[Site]
) -> None:
    if isinstance(node, (ast.While, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Raise, ast.Assert)):
        return
    if isinstance(node, ast.Call) and not computes(node, called):
        return
    if isinstance(node, (ast.stmt, ast.expr)):
        sites.append(Site(node, place, ancestors))
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "ctx", "op", "ops", "type_params", "targets", "target"):
            continue
        if isinstance(node, ast.FunctionDef) and name == "args":
            continue
        for n, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                _visit(child, Place(node, name, n), (*ancestors, node), called, sites)


def computes(call: ast.Call, called: CalledFunction) -> bool:
    """True if a call is of a tensor's method, of a mathematical function, or of a Python function of the user."""
    root = call.func
    attributes = []
    while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
        if isinstance(root, ast.Attribute):
            attributes.append(root.attr)
        root = root.func if isinstance(root, ast.Call) else root.value
    if not isinstance(root, ast.Name):
        return True  # a method of an expression
    if IMPURE_FUNCTIONS & set(attributes):
        return False
    if root.id in called.local_values or root.id in called.code.co_varnames:
        return True
    scope = called.functions[0].__globals__
    if root.id not in scope:
        return root.id in PURE_BUILTINS or not hasattr(builtins, root.id)
    value = scope[root.id]
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(value, (types.FunctionType, type)) or (module or "builtins").split(".")[0] in PURE_MODULES
