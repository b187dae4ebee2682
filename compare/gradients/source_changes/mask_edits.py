"""Edits that let an expression count only where a tensor is on one side of a number, or between two."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import permutations

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name
from compare.gradients.source_changes.insertion_edits import COMPARISONS, is_value, is_whole


def mask_edits(site: Site, called: CalledFunction, bounds: list[ast.expr]) -> Iterator[Edit]:
    """An expression where a local tensor is on one side of a number of the source.

    Args:
        bounds: numbers of the source.
    """
    if not is_value(site, called) or not is_whole(site):
        return
    for other in called.tensors:
        for bound in bounds:
            for comparison in COMPARISONS:
                mask = ast.Compare(name(other), [comparison], [bound])
                yield site.edit(ast.BinOp(site.node, ast.Mult(), mask), 3)


def interval_edits(site: Site, called: CalledFunction, bounds: list[ast.expr]) -> Iterator[Edit]:
    """An expression where a local tensor is between two numbers of the source."""
    if not is_value(site, called) or not is_whole(site):
        return
    for other in called.tensors:
        for low, high in permutations(bounds, 2):
            above = ast.Compare(name(other), [ast.GtE()], [low])
            below = ast.Compare(name(other), [ast.LtE()], [high])
            both = ast.BinOp(above, ast.BitAnd(), below)
            yield site.edit(ast.BinOp(site.node, ast.Mult(), both), 5)
