"""Edits of statements: one left out, moved, or accumulated instead of assigned."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import FACTOR, MISSING, SURPLUS, number


def statement_edits(site: Site) -> Iterator[Edit]:
    """A statement left out or changed; the branches of an ``if``."""
    node = site.node
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, (ast.Name, ast.Subscript)):
            yield site.edit(ast.AugAssign(target, ast.Add(), node.value), 1, MISSING)
            yield site.edit(None, 2, SURPLUS)
    if isinstance(node, ast.AugAssign):
        yield site.edit(ast.Assign([node.target], node.value), 1, SURPLUS)
        for other in (ast.Add(), ast.Sub(), ast.Mult(), ast.Div()):
            if not isinstance(node.op, type(other)):
                yield site.edit(ast.AugAssign(node.target, other, node.value), 1, FACTOR)
        yield site.edit(None, 1, SURPLUS)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield site.edit(None, 1, SURPLUS)
    if isinstance(node, ast.If):
        for test in (ast.UnaryOp(ast.Not(), node.test), ast.Constant(True), ast.Constant(False)):
            yield site.edit(ast.If(test, node.body, node.orelse), 1, "only for some values")


def order_edits(function: ast.FunctionDef | ast.Lambda, sites: list[Site]) -> Iterator[Edit]:
    """Two statements in the other order."""
    for site in sites:
        place = site.place
        if not isinstance(site.node, ast.stmt) or place.index is None:
            continue
        block = getattr(place.parent, place.field)
        if place.index + 1 >= len(block) or isinstance(block[place.index + 1], ast.Return):
            continue
        after = next((s for s in sites if s.place.parent is place.parent and s.place.field == place.field
                      and s.place.index == place.index + 1), None)
        if after is not None:
            changes = ((place, site.node, after.node), (after.place, after.node, site.node))
            yield Edit(changes, 2, "another operand")
    for site in sites:  # a statement at the end of a loop's body belongs after the loop, and the other way round
        if isinstance(site.node, ast.For) and site.place.index is not None:
            block = getattr(site.place.parent, site.place.field)
            moved = site.node.body[-1]
            if len(site.node.body) > 1:
                shorter = ast.For(site.node.target, site.node.iter, site.node.body[:-1], site.node.orelse)
                yield site.edit(ast.If(ast.Constant(True), [shorter, moved], []), 3, "another operand")
            del block


def exponent_edits(site: Site) -> Iterator[Edit]:
    """Other exponents."""
    node = site.node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        for exponent in (2, 3, -1, -2, 0.5, -0.5, 1.5, -1.5, -3):
            yield site.edit(ast.BinOp(node.left, ast.Pow(), number(exponent)), 1, "another operand")
