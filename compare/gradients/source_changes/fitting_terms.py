"""The term or factor that an expression lacks, where its right value is known: no run for each one that is tried."""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, name, number

MAX_NAMES, MAX_EXPRESSIONS, MAX_NUMBERS = 8, 30, 2000
MAX_EDITS = 8
RELATIVE_ERROR = 1e-9
COEFFICIENTS = (1, 2, 3, 4, 0.5, 0.25, 1.5)
COST = 5


@dataclass(frozen=True)
class Ingredient:
    """An expression of the source, and its value."""

    node: ast.expr
    value: Tensor

    def __mul__(self, other: Ingredient) -> Ingredient:
        return Ingredient(ast.BinOp(self.node, ast.Mult(), other.node), self.value * other.value)


def find_ingredients(sites: Sequence[Site], recorded: dict[int, list[Tensor]]) -> list[Ingredient]:
    """Expressions with one value, of real numbers: names first, short ones before long ones."""
    known: dict[str, Ingredient] = {}
    for n, values in recorded.items():
        value, node = values[0], sites[n].node
        text = ast.unparse(node)
        if len(values) == 1 and value.is_floating_point() and 0 < value.numel() <= MAX_NUMBERS and text not in known:
            known[text] = Ingredient(copy.deepcopy(node), value.double())
    ordered = sorted(
        known.values(), key=lambda each: (not isinstance(each.node, ast.Name), len(ast.unparse(each.node)))
    )
    names = [each for each in ordered if isinstance(each.node, ast.Name)][:MAX_NAMES]
    return names + [each for each in ordered if not isinstance(each.node, ast.Name)][: MAX_EXPRESSIONS - len(names)]


def fitting_edits(
    site: Site,
    present: Tensor,
    expected: Tensor,
    ingredients: Sequence[Ingredient],
    numbers: Mapping[str, float] | None = None,
) -> Iterator[Edit]:
    """Edits that give an expression its expected value: a term or a factor more, or another expression.

    Args:
        present: the value that the expression has.
        expected: the one that it should have.
        ingredients: what terms are made of: products of up to three, sums of products times others.
        numbers: named ones, which are told in place of their values.
    """
    present, expected = present.double(), expected.double()
    if not expected.numel() or not (present.isfinite().all() and expected.isfinite().all()):
        return
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(expected.numel(), 3, generator=generator, dtype=torch.float64) + 0.5
    goals = {"term": expected - present, "whole": expected}
    if (present != 0).all():
        goals["factor"] = expected / present
    projected = {kind: (goal.flatten() @ weights).tolist() for kind, goal in goals.items() if goal.abs().max() > 0}
    named = {abs(value): key for key, value in (numbers or {}).items() if value not in (0, 1, 2, -1, -2)}
    count = 0
    for term in _terms(ingredients, expected.shape):
        own = (term.value.flatten() @ weights).tolist()
        for kind, goal in projected.items():
            coefficient = _ratio(own, goal, (*COEFFICIENTS, *named))
            if coefficient is None or not _is_near(coefficient * term.value, goals[kind]):
                continue
            new = _edited(site.node, kind, term, coefficient, named)
            if new is not None:
                yield site.edit(new, COST)
                count += 1
                if count == MAX_EDITS:
                    return


def _terms(ingredients: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """Terms of a shape, the simple ones first."""
    names = [each for each in ingredients if isinstance(each.node, ast.Name)]
    extended = [*ingredients, *(f for each in ingredients for f in _functions(each))]
    for each in extended:
        yield from _shaped(each, shape)
    for a, b in combinations_with_replacement(ingredients, 2):
        yield from _products((a, b), shape)
    for a in ingredients:
        for b in extended[len(ingredients) :]:
            yield from _products((a, b), shape)
    sums = [s for pair in combinations_with_replacement(names, 2) for s in _sums(pair)]
    for total in sums:
        for each in ingredients:
            yield from _products((each, total), shape)
    for three in combinations_with_replacement(ingredients, 3):
        yield from _products(three, shape)
    for total in sums:
        for a, b in combinations_with_replacement(names, 2):
            yield from _products((a, b, total), shape)


def _functions(each: Ingredient) -> Iterator[Ingredient]:
    value, node = each.value, each.node
    yield Ingredient(ast.BinOp(number(1), ast.Div(), node), 1 / value)
    yield Ingredient(ast.BinOp(node, ast.Pow(), number(2)), value**2)
    yield Ingredient(ast.BinOp(number(1), ast.Sub(), node), 1 - value)
    if value.dim() >= 2:
        yield Ingredient(ast.Attribute(node, "mT", ast.Load()), value.mT)
    if isinstance(node, ast.Name):
        yield Ingredient(ast.BinOp(number(1), ast.Div(), ast.BinOp(node, ast.Pow(), number(2))), value**-2)
        for function in ("exp", "log", "sqrt", "sigmoid", "tanh", "sign", "cos", "sin"):
            yield Ingredient(method(node, function), getattr(value, function)())


def _sums(pair: tuple[Ingredient, Ingredient]) -> Iterator[Ingredient]:
    """Sums of a product along one dimension, which is kept."""
    try:
        product = pair[0] * pair[1]
    except RuntimeError:  # shapes that do not go together
        return
    for dim in range(product.value.dim()):
        node = method(product.node, "sum", number(dim), keepdim=ast.Constant(True))
        yield Ingredient(node, product.value.sum(dim, keepdim=True))


def _products(factors: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """The product, and the matrix product of two, if they have the shape or a sum of them has."""
    try:
        product = factors[0]
        for factor in factors[1:]:
            product = product * factor
        yield from _shaped(product, shape)
    except RuntimeError:  # shapes that do not go together
        pass
    if len(factors) == 2:
        for a, b in (factors, factors[::-1]):
            yield from _matrix_products(a, b, shape)


def _matrix_products(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    if a.value.dim() < 2 or b.value.dim() < 2 or len(shape) < 2:
        return
    for left, node in ((a.value, a.node), (a.value.mT, ast.Attribute(a.node, "mT", ast.Load()))):
        if left.shape[-1] == b.value.shape[-2] and (left.shape[-2], b.value.shape[-1]) == tuple(shape[-2:]):
            try:
                yield from _shaped(Ingredient(ast.BinOp(node, ast.MatMult(), b.node), left @ b.value), shape)
            except RuntimeError:  # batches that do not go together
                continue


def _shaped(each: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """The term itself or expanded, if it fits the shape; its sums over one or two dimensions, if they do."""
    value = each.value
    if value.shape == shape:
        yield each
    elif value.dim() <= len(shape):
        with suppress(RuntimeError):  # it has other sizes
            yield Ingredient(each.node, value.expand(shape))
    for count in (1, 2):
        for dims in combinations(range(value.dim()), count):
            for kept in (False, True):
                sizes = [1 if d in dims else s for d, s in enumerate(value.shape) if kept or d not in dims]
                if torch.Size(sizes) == shape and value.shape != shape:
                    at = number(dims[0]) if count == 1 else ast.Tuple([number(d) for d in dims], ast.Load())
                    keywords = {"keepdim": ast.Constant(True)} if kept else {}
                    yield Ingredient(method(each.node, "sum", at, **keywords), value.sum(dims, keepdim=kept))


def _ratio(numbers: list[float], goal: list[float], coefficients: Sequence[float]) -> float | None:
    """The coefficient with which a term has the goal's numbers, if it is one that formulas have."""
    if not numbers[0] or not all(map(math.isfinite, numbers)):
        return None
    ratio = goal[0] / numbers[0]
    size = max(map(abs, goal))
    if any(abs(ratio * n - g) > 1e-7 * size for n, g in zip(numbers, goal, strict=True)):
        return None
    near = min(coefficients, key=lambda c: abs(c - abs(ratio)))
    return math.copysign(near, ratio) if abs(near - abs(ratio)) <= 1e-7 * near else None


def _is_near(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= RELATIVE_ERROR * b.abs().max()).all())


def _edited(
    node: ast.expr, kind: str, term: Ingredient, coefficient: float, named: Mapping[float, str]
) -> ast.expr | None:
    size = abs(coefficient)
    factor = name(named[size]) if size in named else number(int(size) if size == int(size) else size)
    scaled = term.node if size == 1 else ast.BinOp(factor, ast.Mult(), term.node)
    if kind == "term":
        return ast.BinOp(node, ast.Add() if coefficient > 0 else ast.Sub(), scaled)
    if kind == "factor":
        product = ast.BinOp(node, ast.Mult(), scaled)
        return product if coefficient > 0 else ast.UnaryOp(ast.USub(), product)
    if ast.unparse(scaled) == ast.unparse(node) and coefficient > 0:
        return None
    return scaled if coefficient > 0 else ast.UnaryOp(ast.USub(), scaled)
