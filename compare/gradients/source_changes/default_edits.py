"""Arguments added to calls of the user's functions, which have a default there."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from compare.gradients.source_changes.called_functions import CalledFunction, is_number, is_users
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name, number

MAX_NAMES = 4  # of numbers that are tried


def default_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An argument with another value than its default: the negative one, a neighbour, a number that has a name."""
    node = site.node
    if not isinstance(node, ast.Call) or any(isinstance(each, ast.Starred) for each in node.args):
        return
    function = _function_of(node.func, called)
    if function is None:
        return
    parameters = list(inspect.signature(function).parameters.values())
    given = {keyword.arg for keyword in node.keywords}
    for n, parameter in enumerate(parameters):
        if n < len(node.args) or parameter.name in given or None in given:
            continue
        is_next = n == len(node.args) and not given and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        for value, cost in _other_values(parameter.default, called):
            if is_next:
                yield site.edit(ast.Call(node.func, [*node.args, value], []), cost)
            else:
                added = [*node.keywords, ast.keyword(parameter.name, value)]
                yield site.edit(ast.Call(node.func, node.args, added), cost)


def _function_of(node: ast.expr, called: CalledFunction) -> FunctionType | None:
    """The function of the user's that a name or an attribute is."""
    scope = called.functions[0].__globals__
    value: Any = None
    if isinstance(node, ast.Name):
        value = called.local_values.get(node.id, scope.get(node.id))
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = called.local_values.get(node.value.id, scope.get(node.value.id))
        value = getattr(owner, node.attr, None) if isinstance(owner, (type, ModuleType)) else None
    return value if isinstance(value, FunctionType) and is_users(value.__code__.co_filename) else None


def _other_values(default: Any, called: CalledFunction) -> Iterator[tuple[ast.expr, int]]:
    if isinstance(default, bool):
        yield ast.Constant(not default), 1
    elif is_number(default):
        near = (-default, 0, 1, default + 1, default - 1) if isinstance(default, int) else (-default, 0.0, 1.0)
        for n, value in enumerate(dict.fromkeys(value for value in near if value != default)):
            yield number(value), 1 if n == 0 else 2
        for other in list(called.numbers)[:MAX_NAMES]:
            yield name(other), 2
            yield ast.UnaryOp(ast.USub(), name(other)), 2
