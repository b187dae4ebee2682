"""Edits that move a factor or a divisor to another place of the same expression."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.insertion_edits import is_value


def moved_operand_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[Edit]:
    """``f(x) / y`` to ``f(x / y)``, ``y * f(x)`` to ``f(y * x)``, and the other way round."""
    for outer in sites:
        for inner in sites:
            if not any(ancestor is outer.node for ancestor in inner.ancestors):
                continue
            for rest, moved in _factors(outer.node):
                if _is_in(inner, rest) and is_value(inner, called):
                    yield _both(outer, rest, inner, moved(inner.node))
            for rest, moved in _factors(inner.node):
                if is_value(outer, called):
                    yield _both(outer, moved(outer.node), inner, rest)


def _factors(node: ast.AST) -> Iterator[tuple[ast.expr, Callable[[ast.expr], ast.expr]]]:
    """The rest of a product or quotient without one operand, and a function that gives it to another one."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        left, operator, right = node.left, node.op, node.right
        yield left, lambda other: ast.BinOp(other, operator, right)
        if isinstance(operator, ast.Mult):
            yield right, lambda other: ast.BinOp(left, operator, other)


def _both(outer: Site, new_outer: ast.expr, inner: Site, new_inner: ast.expr) -> Edit:
    changes = ((outer.place, outer.node, new_outer), (inner.place, inner.node, new_inner))
    return Edit(changes, 3, outer.ancestors)


def _is_in(site: Site, part: ast.AST) -> bool:
    return site.node is part or any(ancestor is part for ancestor in site.ancestors)
