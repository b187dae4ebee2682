"""The step that an expression lacks, where its right value is known: turned, moved, summed, masked to a triangle."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from torch import Tensor

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, number, transposed
from compare.gradients.source_changes.places import are_equal

COST = 4


def step_that_fits(site: Site, present: Tensor, expected: Tensor) -> Iterator[Edit]:
    """Edits that make the expected value of the present one by one step, or by two along the same dimension."""
    if present.is_complex() or expected.is_complex() or present.shape != expected.shape:
        return
    for value, new in _steps(present.double(), site.node):
        if are_equal(value.expand(expected.shape), expected):
            yield site.edit(new, COST)


def _steps(value: Tensor, node: ast.expr) -> Iterator[tuple[Tensor, ast.expr]]:
    if value.dim() >= 2:
        if value.shape[-1] == value.shape[-2]:
            yield value.mT, transposed(node)
            yield value + value.mT, ast.BinOp(node, ast.Add(), transposed(node))
            yield value - value.mT, ast.BinOp(node, ast.Sub(), transposed(node))
        for half in ("tril", "triu"):
            yield getattr(value, half)(), method(node, half)
    for dim in range(value.dim()):
        at = number(dim)
        flipped, turned = value.flip(dim), method(node, "flip", at)
        yield flipped, turned
        for shift in range(1, value.shape[dim]):
            amount = shift if 2 * shift <= value.shape[dim] else shift - value.shape[dim]
            yield value.roll(amount, dim), method(node, "roll", number(amount), at)
        yield value.cumsum(dim), method(node, "cumsum", at)
        yield flipped.cumsum(dim).flip(dim), method(method(turned, "cumsum", at), "flip", at)
        for name, reduced in (("sum", value.sum(dim, keepdim=True)), ("mean", value.mean(dim, keepdim=True))):
            reduction = method(node, name, at, keepdim=ast.Constant(True))
            yield reduced, reduction
            yield value - reduced, ast.BinOp(node, ast.Sub(), reduction)
    for name in ("abs", "square", "sqrt", "reciprocal", "sign", "exp", "log"):
        yield getattr(value, name)(), method(node, name)
    yield value.clamp(min=0), method(node, "clamp", min=number(0))
