"""Values that the operands of an expression should have, where that of the whole expression is known."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import assigned_name
from compare.gradients.source_changes.expected_values import ExpectedValue
from compare.gradients.source_changes.places import Place

MAX_DEPTH = 5


class Operands:
    """Expressions with the values that they have, by their nodes.

    Args:
        places: those of all functions of backward.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        single = [place for place in places if not place.more and len(place.present) == 1]
        self._by_node = {id(place.site.node): place for place in single}
        reads: dict[tuple[int, str], int] = {}
        for place in single:
            if isinstance(place.site.node, ast.Name):
                key = (id(place.function), place.site.node.id)
                reads[key] = reads.get(key, 0) + 1
        self._assigned: dict[tuple[int, str], Place] = {}
        for place in single:
            key = (id(place.function), assigned_name(place.site))
            if reads.get(key) == 1:
                self._assigned[key] = place

    def of(self, expected: ExpectedValue, depth: int = MAX_DEPTH) -> Iterator[ExpectedValue]:
        """Operands of the expression, and theirs, with their values.

        For a name that is read once, the expression that is assigned to it.
        """
        node = expected.place.site.node
        if depth == 0 or len(expected.value) != 1 or expected.place.more:
            return
        for operand, value in self._values(node, expected.value[0]):
            place = self._by_node.get(id(operand))
            if isinstance(operand, ast.Name):
                key = (id(expected.place.function), operand.id)
                place = self._assigned.get(key, place)
            if place is None or place.present[0].shape != value.shape or not value.isfinite().all():
                continue
            own = ExpectedValue(place, [value], quantities=expected.quantities)
            yield own
            yield from self.of(own, depth - 1)

    def _values(self, node: ast.AST, expected: Tensor) -> Iterator[tuple[ast.expr, Tensor]]:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node.operand, -expected
        if not isinstance(node, ast.BinOp):
            return
        left, right = self._present(node.left), self._present(node.right)
        if left is None or right is None:
            return
        if isinstance(node.op, ast.Add):
            yield node.left, expected - right
            yield node.right, expected - left
        elif isinstance(node.op, ast.Sub):
            yield node.left, expected + right
            yield node.right, left - expected
        elif isinstance(node.op, ast.Mult):
            yield node.left, expected / right
            yield node.right, expected / left
        elif isinstance(node.op, ast.Div):
            yield node.left, expected * right
            yield node.right, left / expected

    def _present(self, node: ast.expr) -> Tensor | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return torch.tensor(float(node.value), dtype=torch.float64)
        place = self._by_node.get(id(node))
        return place.present[0].double() if place is not None and place.present[0].is_floating_point() else None
