"""Edits that move a factor or a divisor to another place of the same expression."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.insertion_edits import is_value


def moved_operand_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[Edit]:
    """``f(x) / y`` to ``f(x / y)``, and the other way round."""
    for outer in sites:
        for inner in sites:
            if not any(ancestor is outer.node for ancestor in inner.ancestors):
                continue
            if _has_factor(outer.node) and _is_in(inner, outer.node.left) and is_value(inner, called):
                product = ast.BinOp(inner.node, outer.node.op, outer.node.right)
                yield _both(outer, outer.node.left, inner, product)
            if _has_factor(inner.node) and is_value(outer, called):
                product = ast.BinOp(outer.node, inner.node.op, inner.node.right)
                yield _both(outer, product, inner, inner.node.left)


def _both(outer: Site, new_outer: ast.expr, inner: Site, new_inner: ast.expr) -> Edit:
    changes = ((outer.place, outer.node, new_outer), (inner.place, inner.node, new_inner))
    return Edit(changes, 3, outer.ancestors)


def _has_factor(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div))


def _is_in(site: Site, part: ast.AST) -> bool:
    return site.node is part or any(ancestor is part for ancestor in site.ancestors)
