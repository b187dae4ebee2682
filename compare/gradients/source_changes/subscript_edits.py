"""Edits of subscripts, slices and tuples."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name, number


def subscript_edits(site: Site) -> Iterator[Edit]:
    """Slices moved, indices left out."""
    node = site.node
    if not isinstance(node, ast.Subscript):
        return
    if isinstance(node.ctx, ast.Load):
        yield site.edit(node.value, 2)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for n, part in enumerate(parts):
        for other in _other_slices(part):
            changed = [*parts[:n], other, *parts[n + 1 :]]
            new = ast.Tuple(changed, ast.Load()) if isinstance(node.slice, ast.Tuple) else other
            yield site.edit(ast.Subscript(node.value, new, node.ctx), 1)
    if len(parts) > 1:
        for n in range(len(parts) - 1):
            exchanged = [*parts[:n], parts[n + 1], parts[n], *parts[n + 2 :]]
            yield site.edit(ast.Subscript(node.value, ast.Tuple(exchanged, ast.Load()), node.ctx), 1)


def target_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Other slices and indices where a value is stored; names that get values in another order."""
    node = site.node
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if not isinstance(node, (ast.Assign, ast.AugAssign)) or len(targets) != 1:
        return

    def stored(target: ast.expr) -> ast.stmt:
        return (
            ast.Assign([target], node.value)
            if isinstance(node, ast.Assign)
            else ast.AugAssign(target, node.op, node.value)
        )

    target = targets[0]
    if isinstance(target, ast.Tuple) and all(isinstance(each, ast.Name) for each in target.elts):
        for n, m in combinations(range(len(target.elts)), 2):
            exchanged = list(target.elts)
            exchanged[n], exchanged[m] = exchanged[m], exchanged[n]
            yield site.edit(stored(ast.Tuple(exchanged, ast.Store())), 1)
    if isinstance(target, ast.Subscript):
        parts = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
        changed = [
            [*parts[:n], other, *parts[n + 1 :]]
            for n, part in enumerate(parts)
            for other in (*_other_slices(part), *_other_indices(part, called))
        ]
        changed += [[*parts[:n], parts[n + 1], parts[n], *parts[n + 2 :]] for n in range(len(parts) - 1)]
        for indices in changed:
            index = indices[0] if len(indices) == 1 else ast.Tuple(indices, ast.Load())
            yield site.edit(stored(ast.Subscript(target.value, index, ast.Store())), 1)


def _other_indices(part: ast.expr, called: CalledFunction) -> Iterator[ast.expr]:
    if isinstance(part, ast.Constant) and type(part.value) is int:
        yield from (number(part.value + shift) for shift in (1, -1, 2))
        yield from (name(local) for local, value in called.numbers.items() if isinstance(value, int))
    elif isinstance(part, ast.Name) and part.id in called.tensors:
        yield from (name(other) for other in called.tensors if other != part.id)
        yield ast.Call(ast.Attribute(part, "argsort", ast.Load()), [], [])
    elif not isinstance(part, (ast.Slice, ast.Constant)):
        yield from (ast.BinOp(part, operator, number(1)) for operator in (ast.Add(), ast.Sub()))


def _other_slices(part: ast.expr) -> Iterator[ast.expr]:
    if not isinstance(part, ast.Slice):
        return
    lower, upper, step = part.lower, part.upper, part.step
    if lower is not None and upper is None:
        yield ast.Slice(None, ast.UnaryOp(ast.USub(), lower), step)
    if upper is not None and lower is None:
        negative = upper.operand if isinstance(upper, ast.UnaryOp) else ast.UnaryOp(ast.USub(), upper)
        yield ast.Slice(negative, None, step)
        yield ast.Slice(upper, None, step)
    if lower is not None or upper is not None:
        yield ast.Slice(None, None, step)
    for operator in (ast.Add(), ast.Sub()):
        if lower is not None:
            yield ast.Slice(ast.BinOp(lower, operator, number(1)), upper, step)
        if upper is not None:
            yield ast.Slice(lower, ast.BinOp(upper, operator, number(1)), step)
        if lower is not None and upper is not None:
            yield ast.Slice(ast.BinOp(lower, operator, number(1)), ast.BinOp(upper, operator, number(1)), step)
    if step is None:
        yield ast.Slice(lower, None, number(2))
    else:
        yield ast.Slice(lower, upper, None)
        yield ast.Slice(number(1), upper, step)
    if lower is None and upper is None:
        yield ast.Slice(number(1), None, step)
        yield ast.Slice(None, number(-1), step)


def tuple_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Elements of a tuple or list exchanged or replaced, such as the returned gradients."""
    node = site.node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "save_for_backward":
        for n, argument in enumerate(node.args):
            for other in called.tensors:
                if not (isinstance(argument, ast.Name) and argument.id == other):
                    changed = [*node.args[:n], name(other), *node.args[n + 1 :]]
                    yield site.edit(ast.Call(node.func, changed, []), 1)
    if not isinstance(node, (ast.Tuple, ast.List)) or not isinstance(node.ctx, ast.Load):
        return
    elements = node.elts
    make = type(node)
    for n in range(len(elements)):
        for m in range(n + 1, len(elements)):
            exchanged = list(elements)
            exchanged[n], exchanged[m] = elements[m], elements[n]
            yield site.edit(make(exchanged, ast.Load()), 1)
        if isinstance(elements[n], ast.Constant) and elements[n].value is None:  # type: ignore[attr-defined]
            for other in called.tensors:
                yield site.edit(make([*elements[:n], name(other), *elements[n + 1 :]], ast.Load()), 2)
