"""The step that an expression lacks, where its right value is known: a flip, a shift, a sum, a mask."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, name, number, transposed
from compare.gradients.source_changes.places import TOLERANCE, are_equal

COST = 4


def step_that_fits(site: Site, present: Tensor, expected: Tensor, numbers: Mapping[str, float]) -> Iterator[Edit]:
    """Edits that make the expected value of the present one by one step, or by two along the same dimension.

    Args:
        numbers: named ones, up to which a mask may go.
    """
    if present.is_complex() or expected.is_complex() or present.shape != expected.shape:
        return
    for value, new in (*_steps(present.double(), site.node), *_masks(present.double(), expected, site.node, numbers)):
        if are_equal(value.expand(expected.shape), expected):
            yield site.edit(new, COST)


def _masks(
    value: Tensor, expected: Tensor, node: ast.expr, numbers: Mapping[str, float]
) -> Iterator[tuple[Tensor, ast.expr]]:
    """The value with 0 from some index on, or up to there, where the expected one has 0."""
    not_zero = expected.abs() > TOLERANCE * expected.abs().max() if expected.numel() else expected != 0
    for dim, size in enumerate(value.shape):
        others = [d for d in range(value.dim()) if d != dim]
        kept = not_zero.any(dim=others) if others else not_zero
        count = int(kept.sum())
        if not 0 < count < size:
            continue
        named = next((key for key, each in numbers.items() if each == count and isinstance(each, int)), "")
        places = torch.arange(size)
        for comparison, is_kept in ((ast.Lt(), places < count), (ast.GtE(), places >= size - count)):
            if torch.equal(kept.cpu(), is_kept):
                bound = size - count if isinstance(comparison, ast.GtE) else count
                limit = name(named) if named and bound == count else number(bound)
                index: ast.expr = method(name("torch"), "arange", number(size))
                for _ in range(dim + 1, value.dim()):
                    index = method(index, "unsqueeze", number(-1))
                mask = is_kept.to(value.device).view([-1] + [1] * (value.dim() - dim - 1))
                yield value * mask, ast.BinOp(node, ast.Mult(), ast.Compare(index, [comparison], [limit]))


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
        flipped, reverse = value.flip(dim), method(node, "flip", at)
        yield flipped, reverse
        for shift in range(1, value.shape[dim]):
            amount = shift if 2 * shift <= value.shape[dim] else shift - value.shape[dim]
            yield value.roll(amount, dim), method(node, "roll", number(amount), at)
        yield value.cumsum(dim), method(node, "cumsum", at)
        yield flipped.cumsum(dim).flip(dim), method(method(reverse, "cumsum", at), "flip", at)
        for step, reduced in (("sum", value.sum(dim, keepdim=True)), ("mean", value.mean(dim, keepdim=True))):
            reduction = method(node, step, at, keepdim=ast.Constant(True))
            yield reduced, reduction
            yield value - reduced, ast.BinOp(node, ast.Sub(), reduction)
    for step in ("abs", "square", "sqrt", "reciprocal", "sign", "exp", "log"):
        yield getattr(value, step)(), method(node, step)
    yield value.clamp(min=0), method(node, "clamp", min=number(0))
    yield 1 - value, ast.BinOp(number(1), ast.Sub(), node)
