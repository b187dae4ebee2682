"""Small edits of a function's syntax tree, and which of its parts may be edited."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.ending_loops import ends_by_its_test, names_in, starts_a_count

# Modules and builtins whose functions compute, and change nothing outside of the function.
PURE_MODULES = ("torch", "math", "cmath", "numpy", "itertools", "functools", "operator")
IMPURE_FUNCTIONS = {
    "save",
    "load",
    "set_default_dtype",
    "manual_seed",
    "seed",
    "compile",
    "set_num_threads",
    "tofile",
}
PURE_BUILTINS = {
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "isinstance", "iter", "len", "list",
    "map", "max", "min", "next", "pow", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple",
    "zip",
}  # fmt: skip
VALUES = (Tensor, FunctionCtx, int, float, complex, str, tuple, list, dict, torch.dtype, type(None))
# Statements with nothing to edit.
LEFT_ALONE = (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Raise, ast.Assert)
FIELDS_LEFT_ALONE = {
    "annotation",
    "returns",
    "decorator_list",
    "ctx",
    "op",
    "ops",
    "type_params",
    "targets",
    "target",
}


@dataclass(frozen=True)
class Place:
    """The place of a node in its parent."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        """Set the node at this place."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True)
class Edit:
    """One edit of a function.

    Attributes:
        changes: places, with the old and the new node of each; the new one is None for a statement left out.
        cost: how far the edit is from the source; edits of a smaller cost are tried first.
        ancestors: nodes from the function to the parent of the first place.
    """

    changes: tuple[tuple[Place, Any, ast.AST | None], ...]
    cost: int
    ancestors: tuple[ast.AST, ...]

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make the edit in the tree, and take it back."""
        try:
            for place, old, new in self.changes:
                node = ast.Pass() if new is None else new
                if not hasattr(node, "lineno"):
                    ast.fix_missing_locations(ast.copy_location(node, old))
                place.put(node)
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

    def edit(self, new: ast.AST | None, cost: int) -> Edit:
        """The edit that replaces this node."""
        return Edit(((self.place, self.node, new),), cost, self.ancestors)


def assigned_name(site: Site) -> str:
    """Name that an expression is assigned to by itself; "" without one."""
    parent = site.ancestors[-1]
    targets = parent.targets if isinstance(parent, ast.Assign) and parent.value is site.node else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


def find_sites(called: CalledFunction, function: ast.FunctionDef | ast.Lambda) -> list[Site]:
    """Every expression and statement in the body of a function that may be edited.

    Loops that an edit could make endless, and calls that may do something else than to compute, are left out.
    """
    sites: list[Site] = []
    if isinstance(function, ast.Lambda):
        _visit(function.body, Place(function, "body", None), (function,), called, sites)
        return sites
    for n, node in enumerate(function.body):
        is_docstring = n == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring:
            _visit(node, Place(function, "body", n), (function,), called, sites)
    return sites


def _visit(
    node: ast.AST, place: Place, ancestors: tuple[ast.AST, ...], called: CalledFunction, sites: list[Site]
) -> None:
    if isinstance(node, LEFT_ALONE) or starts_a_count(node, ancestors[0]):
        return
    if isinstance(node, ast.While):  # an edit of what its test depends on could make it endless
        for n, statement in enumerate(node.body if ends_by_its_test(node, ancestors[0]) else []):
            if not names_in(statement) & names_in(node.test):
                _visit(statement, Place(node, "body", n), (*ancestors, node), called, sites)
        return
    call = node.value if isinstance(node, ast.Expr) else node
    if isinstance(call, ast.Call) and not _computes(call, called):
        return
    if isinstance(node, (ast.stmt, ast.expr)):
        sites.append(Site(node, place, ancestors))
    for name, value in ast.iter_fields(node):
        if name in FIELDS_LEFT_ALONE or (isinstance(node, (ast.FunctionDef, ast.Lambda)) and name == "args"):
            continue
        if (type(node), name) in ((ast.With, "items"), (ast.ExceptHandler, "type")):
            continue
        for n, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, (ast.expr, ast.stmt, ast.keyword, ast.comprehension, ast.ExceptHandler)):
                _visit(child, Place(node, name, n), (*ancestors, node), called, sites)


def _computes(call: ast.Call, called: CalledFunction) -> bool:
    """True if a call is of a tensor's method, of a mathematical function, or of a Python function of the user."""
    root: ast.expr = call.func
    attributes = set()
    while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
        if isinstance(root, ast.Attribute):
            attributes.add(root.attr)
        root = root.func if isinstance(root, ast.Call) else root.value
    if attributes & IMPURE_FUNCTIONS:
        return False
    if not isinstance(root, ast.Name):
        return True  # a method of an expression
    if root.id in called.local_values:
        return isinstance(called.local_values[root.id], (*VALUES, types.FunctionType, type))
    scope = called.functions[0].__globals__
    if root.id not in scope:
        return root.id in PURE_BUILTINS or not hasattr(builtins, root.id)
    value = scope[root.id]
    if isinstance(value, (*VALUES, types.FunctionType, type)):
        return not isinstance(value, (list, dict))  # a method may change it for every later call
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return (module or "").split(".")[0] in PURE_MODULES
