"""Edits of tuples of dimensions, such as those over which a sum is taken."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import number


def find_dimensions(sites: Sequence[Site]) -> list[ast.expr]:
    """Tuples of whole numbers that stand in the source."""
    tuples = {ast.unparse(site.node): site.node for site in sites if _is_tuple_of_numbers(site)}
    return [copy.deepcopy(node) for node in tuples.values()]


def dimension_edits(site: Site, called: CalledFunction, dimensions: Sequence[ast.expr]) -> Iterator[Edit]:
    """Another tuple of dimensions, or one without its first or last."""
    node = site.node
    if not _is_tuple_of_numbers(site) and not _has_dimensions(node, called):
        return
    for other in dimensions:
        if ast.unparse(other) != ast.unparse(node):
            yield site.edit(other, 1)
    if isinstance(node, (ast.Name, ast.Attribute)):
        yield site.edit(ast.Subscript(node, ast.Slice(number(1), None, None), ast.Load()), 2)
        yield site.edit(ast.Subscript(node, ast.Slice(None, number(-1), None), ast.Load()), 2)


def _is_tuple_of_numbers(site: Site) -> bool:
    node, parent = site.node, site.ancestors[-1]
    if not isinstance(node, ast.Tuple) or not node.elts or isinstance(parent, (ast.Subscript, ast.For)):
        return False
    return all(isinstance(_without_sign(each), int) for each in node.elts)


def _without_sign(node: ast.expr) -> Any:
    operand = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    return operand.value if isinstance(operand, ast.Constant) and not isinstance(operand.value, bool) else None


def _has_dimensions(node: ast.AST, called: CalledFunction) -> bool:
    if not isinstance(node, (ast.Name, ast.Attribute)) or not isinstance(node.ctx, ast.Load):
        return False
    value = called.values.get(ast.unparse(node))
    return type(value) is tuple and bool(value) and all(type(each) is int for each in value)
