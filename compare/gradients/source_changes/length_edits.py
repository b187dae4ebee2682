"""Edits of numbers: the length between two bounds, a place counted from the other end."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import combinations

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name, number

MAX_DIMENSIONS = 3  # of tensors whose lengths are tried


def length_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[Edit]:
    """The difference of two whole numbers that get their values together, such as ``right - left``."""
    if not sites:
        return
    bounds = list(_bounds(sites[0].ancestors[0], called))
    for site in sites:
        node = site.node
        if isinstance(node, ast.Name) and isinstance(called.numbers.get(node.id), int):
            for low, high in bounds:
                if node.id not in (low, high):
                    yield site.edit(ast.BinOp(name(high), ast.Sub(), name(low)), 2)


def other_end_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[Edit]:
    """A loop's variable counted from the other end, such as ``steps - 1 - t``."""
    if not sites:
        return
    loops = [node for node in ast.walk(sites[0].ancestors[0]) if isinstance(node, (ast.For, ast.comprehension))]
    variables = {loop.target.id for loop in loops if isinstance(loop.target, ast.Name)}
    ends = [name(each) for each, value in called.numbers.items() if isinstance(value, int) and value > 1]
    shapes = [(each, value) for each, value in called.tensors.items() if value.dim() <= MAX_DIMENSIONS]
    ends += [
        ast.Subscript(ast.Attribute(name(each), "shape", ast.Load()), number(dim), ast.Load())
        for each, value in shapes
        for dim in range(value.dim())
    ]
    for site in sites:
        node = site.node
        if isinstance(node, ast.Name) and node.id in variables and isinstance(called.numbers.get(node.id), int):
            for end in ends:
                if not (isinstance(end, ast.Name) and end.id in variables):
                    last = ast.BinOp(end, ast.Sub(), number(1))
                    yield site.edit(ast.BinOp(last, ast.Sub(), name(node.id)), 2)


def _bounds(function: ast.AST, called: CalledFunction) -> Iterator[tuple[str, str]]:
    """Names of the lower and the upper bound, from every tuple of names that is assigned."""
    for node in ast.walk(function):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            names = [each.id for each in node.elts if isinstance(each, ast.Name)]
            whole = [each for each in names if isinstance(called.numbers.get(each), int)]
            for pair in combinations(whole, 2):
                low, high = sorted(pair, key=called.numbers.__getitem__)
                if called.numbers[low] < called.numbers[high]:
                    yield low, high
