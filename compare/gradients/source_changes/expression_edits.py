"""Edits of operators, numbers, names and comparisons."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import torch

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site

COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


def name(identifier: str) -> ast.Name | ast.Attribute:
    """A name, or a name with an attribute, that is read."""
    owner, _, attribute = identifier.partition(".")
    node = ast.Name(owner, ast.Load())
    return ast.Attribute(node, attribute, ast.Load()) if attribute else node


def number(value: float) -> ast.expr:
    """A number; a negative one as Python's grammar has it."""
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


def method(node: ast.expr, called: str, *arguments: ast.expr, **keywords: ast.expr) -> ast.Call:
    """The call of a tensor's method."""
    function = ast.Attribute(node, called, ast.Load())
    return ast.Call(function, list(arguments), [ast.keyword(key, value) for key, value in keywords.items()])


def transposed(node: ast.expr) -> ast.expr:
    """``node.mT``."""
    return ast.Attribute(node, "mT", ast.Load())


def operator_edits(site: Site) -> Iterator[Edit]:
    """Signs, operands left out or exchanged, and operators exchanged."""
    node = site.node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield site.edit(node.operand, 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Invert, ast.Not)):
        yield site.edit(node.operand, 1)
    if not isinstance(node, ast.BinOp):
        return
    left, right, op = node.left, node.right, node.op

    def joined(a: ast.expr, operator: ast.operator, b: ast.expr) -> ast.expr:
        return ast.BinOp(a, operator, b)

    if isinstance(op, (ast.Add, ast.Sub)):
        other = ast.Sub() if isinstance(op, ast.Add) else ast.Add()
        yield site.edit(joined(left, other, right), 1)
        yield site.edit(left, 1)
        yield site.edit(right if isinstance(op, ast.Add) else ast.UnaryOp(ast.USub(), right), 1)
        yield site.edit(joined(left, ast.Mult(), right), 2)
        yield site.edit(joined(right, ast.Sub(), left), 2)
    if isinstance(op, ast.Mult):
        yield site.edit(left, 1)
        yield site.edit(right, 1)
        yield site.edit(joined(left, ast.Div(), right), 1)
        yield site.edit(joined(right, ast.Div(), left), 2)
        yield site.edit(joined(left, ast.Add(), right), 2)
        yield site.edit(joined(left, ast.Sub(), right), 2)
        yield site.edit(joined(left, ast.MatMult(), right), 2)
    if isinstance(op, (ast.Div, ast.FloorDiv)):
        yield site.edit(left, 1)
        yield site.edit(joined(right, ast.Div(), left), 1)
        yield site.edit(joined(left, ast.Mult(), right), 1)
        yield site.edit(joined(left, ast.Div(), joined(right, ast.Mult(), right)), 2)
    if isinstance(op, ast.FloorDiv):
        for shifted in (ast.Sub(), ast.Add()):
            yield site.edit(joined(joined(left, shifted, number(1)), op, right), 1)
    if isinstance(op, ast.Pow):
        yield site.edit(left, 1)
        yield from exponent_edits(site)
    if isinstance(op, ast.MatMult):
        yield site.edit(joined(right, op, left), 1)
        yield site.edit(joined(left, ast.Mult(), right), 2)
    if isinstance(op, (ast.BitAnd, ast.BitOr)):
        yield site.edit(joined(left, ast.BitOr() if isinstance(op, ast.BitAnd) else ast.BitAnd(), right), 1)
        yield site.edit(left, 1)
        yield site.edit(right, 1)
    if isinstance(left, ast.BinOp):  # (a - b) * c to a - b * c
        yield site.edit(joined(left.left, left.op, joined(left.right, op, right)), 2)
        yield site.edit(joined(joined(left.left, op, right), left.op, left.right), 2)
    if isinstance(right, ast.BinOp):
        yield site.edit(joined(joined(left, op, right.left), right.op, right.right), 2)


def comparison_edits(site: Site) -> Iterator[Edit]:
    """Comparisons exchanged; ``and`` and ``or``; a condition left out."""
    node = site.node
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISONS:
            if isinstance(node.ops[0], COMPARISONS) and not isinstance(node.ops[0], other):
                yield site.edit(ast.Compare(node.left, [other()], node.comparators), 1)
    if isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield site.edit(ast.BoolOp(other_op, node.values), 1)
        for value in node.values:
            yield site.edit(value, 1)
    if isinstance(node, ast.IfExp):
        yield site.edit(node.body, 1)
        yield site.edit(node.orelse, 1)
        yield site.edit(ast.IfExp(node.test, node.orelse, node.body), 1)


def constant_edits(site: Site, numbers: Sequence[float] = ()) -> Iterator[Edit]:
    """Other numbers and truth values.

    Args:
        numbers: those with a point that stand elsewhere in the source.
    """
    node = site.node
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    parent = site.ancestors[-1]
    is_negated = isinstance(parent, ast.UnaryOp)
    # Halves of a length are seldom thirds, even if a third is right for the length of this case.
    is_divisor = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.FloorDiv) and parent.right is node
    near: tuple[float, ...] = ()
    far: tuple[float, ...] = ()
    if isinstance(value, bool):
        yield site.edit(ast.Constant(not value), 1)
    elif isinstance(value, int) and abs(value) < 100:
        near = (value + 1, value - 1, -value, 0, 1)
        far = (-1, 2, -2, 3, 0.5, 2 * value, value * value, 1 / (value or 1))
    elif isinstance(value, float):
        near = (-value, 1 - value, 2 * value, value / 2, value * value, 1 / (value or 1), 0.0, 1.0, 0.5, 2.0)
        far = tuple(numbers)
    for others, cost in ((near, 1), (far, 2)):
        for other in dict.fromkeys(others):
            if other != value and not (is_negated and other < 0):
                yield site.edit(number(other), cost + is_divisor)


def name_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Another name of the same kind in the place of a name; another attribute of ctx."""
    node = site.node
    tensors, numbers = called.tensors, called.numbers
    if isinstance(node, ast.Attribute) and ast.unparse(node) in called.values:
        if ast.unparse(node) in numbers:
            yield from (site.edit(size, 2) for size in lengths(called))
        for other in called.values:
            if other.count(".") and other != ast.unparse(node):
                yield site.edit(name(other), 2)
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return
    parent = site.ancestors[-1]
    if isinstance(parent, ast.Call) and parent.func is node:
        return
    own_global = None if node.id in called.local_values else called.global_tensors.get(node.id)
    if node.id in tensors or own_global is not None:
        own = tensors[node.id] if own_global is None else own_global
        for other in tensors if own_global is None else ():
            if other != node.id:
                yield site.edit(name(other), 1)
        for other, value in called.global_tensors.items():
            is_known = other in called.local_values or called.functions[0].__globals__.get(other) is not value
            if other != node.id and not is_known and (value.dtype, value.shape) == (own.dtype, own.shape):
                yield site.edit(name(other), 1 if own_global is not None else 2)
    elif node.id in numbers:
        yield from (site.edit(size, 2) for size in lengths(called))
        for other in numbers:
            if other != node.id:
                yield site.edit(name(other), 1)
        for shift in (-1, 1):
            operator = ast.Add() if shift > 0 else ast.Sub()
            yield site.edit(ast.BinOp(name(node.id), operator, number(1)), 1)
        yield site.edit(ast.UnaryOp(ast.USub(), name(node.id)), 2)
        value = numbers[node.id]
        if isinstance(value, float) or abs(value) < 1000:
            yield site.edit(ast.BinOp(number(1), ast.Sub(), name(node.id)), 2)
            yield site.edit(ast.BinOp(name(node.id), ast.Pow(), number(2)), 2)
            yield site.edit(ast.BinOp(name(node.id), ast.Pow(), number(0.5)), 2)
            yield site.edit(ast.BinOp(number(2), ast.Mult(), name(node.id)), 2)
    elif isinstance(called.local_values.get(node.id), bool):
        yield site.edit(ast.UnaryOp(ast.Not(), name(node.id)), 1)


def lengths(called: CalledFunction) -> Iterator[ast.expr]:
    """Lengths that a shape has, such as ``ctx.shape[1]``."""
    for local, value in called.values.items():
        if isinstance(value, torch.Size):
            yield from (ast.Subscript(name(local), number(dim), ast.Load()) for dim in range(len(value)))


def exponent_edits(site: Site) -> Iterator[Edit]:
    """Other exponents."""
    node = site.node
    for exponent in (2, 3, -1, -2, 0.5, -0.5, 1.5, -1.5, -3):
        yield site.edit(ast.BinOp(node.left, ast.Pow(), number(exponent)), 1)
