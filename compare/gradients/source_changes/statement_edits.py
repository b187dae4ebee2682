"""Edits of statements: one left out, moved, or accumulated instead of assigned."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, number

INDICES = (ast.Name, ast.Attribute, ast.BinOp, ast.Call, ast.Subscript)  # expressions that may be a tensor of indices


def statement_edits(site: Site) -> Iterator[Edit]:
    """A statement left out or changed; the branches of an ``if``."""
    node = site.node
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, (ast.Name, ast.Subscript)):
            yield site.edit(ast.AugAssign(target, ast.Add(), node.value), 1)
            yield site.edit(None, 2)
    if isinstance(node, ast.AugAssign):
        yield site.edit(ast.Assign([node.target], node.value), 1)
        for other in (ast.Add(), ast.Sub(), ast.Mult(), ast.Div()):
            if not isinstance(node.op, type(other)):
                yield site.edit(ast.AugAssign(node.target, other, node.value), 1)
        yield site.edit(None, 1)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield site.edit(None, 1)
    if isinstance(node, ast.If):
        for test in (ast.UnaryOp(ast.Not(), node.test), ast.Constant(True), ast.Constant(False)):
            yield site.edit(ast.If(test, node.body, node.orelse), 1)
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):  # "elif" to "if"
            alone = ast.If(node.test, node.body, [])
            yield site.edit(ast.If(ast.Constant(True), [alone, *node.orelse], []), 2)


def index_edits(site: Site) -> Iterator[Edit]:
    """Values that are added at repeated indices, or put to one place of each row."""
    node = site.node
    target = node.target if isinstance(node, ast.AugAssign) else None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    if not isinstance(target, ast.Subscript) or isinstance(getattr(node, "op", ast.Add()), (ast.Mult, ast.Div)):
        return
    value = ast.UnaryOp(ast.USub(), node.value) if isinstance(getattr(node, "op", None), ast.Sub) else node.value
    if isinstance(target.slice, INDICES):
        added = method(copy.deepcopy(target.value), "index_add_", number(0), target.slice, value)
        yield site.edit(ast.Expr(added), 2)
    if isinstance(target.slice, ast.Tuple) and not any(
        isinstance(e, (ast.Slice, ast.Constant)) for e in target.slice.elts
    ):
        indices = ast.Tuple(target.slice.elts, ast.Load())
        added = method(copy.deepcopy(target.value), "index_put_", indices, value, accumulate=ast.Constant(True))
        yield site.edit(ast.Expr(added), 2)
    if isinstance(target.slice, ast.Tuple):
        others = [n for n, e in enumerate(target.slice.elts) if not _is_whole(e)]
        if len(others) == 1 and isinstance(index := target.slice.elts[others[0]], INDICES):
            added = method(copy.deepcopy(target.value), "index_add_", number(others[0]), index, value)
            yield site.edit(ast.Expr(added), 2)
    if isinstance(target.slice, ast.Tuple) and len(target.slice.elts) == 2:
        first, second = target.slice.elts
        if isinstance(first, ast.Slice) and isinstance(second, ast.Name):
            length = ast.Call(ast.Name("len", ast.Load()), [second], [])
            rows = ast.Call(ast.Attribute(ast.Name("torch", ast.Load()), "arange", ast.Load()), [length], [])
            place = ast.Subscript(target.value, ast.Tuple([rows, second], ast.Load()), ast.Store())
            if isinstance(node, ast.Assign):
                yield site.edit(ast.Assign([place], node.value), 2)
            else:
                yield site.edit(ast.AugAssign(place, node.op, node.value), 2)


def order_edits(sites: list[Site]) -> Iterator[Edit]:
    """Two statements in the other order, or two names set at once; the last statement of a loop after it."""
    statements = {
        (id(s.place.parent), s.place.field, s.place.index): s for s in sites if isinstance(s.node, ast.stmt)
    }
    for (parent, field, index), site in statements.items():
        after = statements.get((parent, field, index + 1)) if index is not None else None
        if after is not None and not isinstance(after.node, ast.Return):
            changes = ((site.place, site.node, after.node), (after.place, after.node, site.node))
            yield Edit(changes, 2, site.ancestors)
            if all(_sets_one_name(each.node) for each in (site, after)):
                targets = ast.Tuple([each.node.targets[0] for each in (site, after)], ast.Store())
                values = ast.Tuple([each.node.value for each in (site, after)], ast.Load())
                at_once = ast.Assign([targets], values)
                yield Edit(((site.place, site.node, at_once), (after.place, after.node, None)), 2, site.ancestors)
        if isinstance(site.node, ast.For) and len(site.node.body) > 1:
            shorter = ast.For(site.node.target, site.node.iter, site.node.body[:-1], site.node.orelse)
            yield site.edit(ast.If(ast.Constant(True), [shorter, site.node.body[-1]], []), 3)


def _is_whole(index: ast.expr) -> bool:
    """True for ``:``."""
    return isinstance(index, ast.Slice) and not (index.lower or index.upper or index.step)


def _sets_one_name(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
