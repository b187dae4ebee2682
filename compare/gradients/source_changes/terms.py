"""Terms that formulas are made of: products of expressions of the source, functions of them, and sums of products."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Site, assigned_name
from compare.gradients.source_changes.ending_loops import names_in
from compare.gradients.source_changes.expression_edits import method, number

MAX_NAMES, MAX_EXPRESSIONS, MAX_NUMBERS = 8, 22, 2000


@dataclass(frozen=True)
class Ingredient:
    """An expression of the source, and its value."""

    node: ast.expr
    value: Tensor

    @property
    def text(self) -> str:
        """The source."""
        return ast.unparse(self.node)

    def __mul__(self, other: Ingredient) -> Ingredient:
        node, factor = ast.BinOp(self.node, ast.Mult(), other.node), other.node
        if isinstance(factor, ast.BinOp) and isinstance(factor.op, ast.Div) and ast.unparse(factor.left) == "1":
            node = ast.BinOp(self.node, ast.Div(), factor.right)
        return Ingredient(node, self.value * other.value)


def find_ingredients(
    place: Site, sites: Sequence[Site], recorded: dict[int, list[Tensor]], steps: int = 1, step: int = 0
) -> list[Ingredient]:
    """Expressions with one value, of real numbers, that a place can read: names first, short ones before long ones.

    Args:
        place: where they are to be used; what is computed after it, or from it, is left out.
        steps: for expressions of a loop with so many steps, too, with their values in one of them.
        step: the number of that one.
    """
    stored = [n for n in ast.walk(place.ancestors[0]) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    set_later = {n.id for n in stored if n.lineno >= place.node.lineno}
    known: dict[str, Ingredient] = {}
    for n, values in recorded.items():
        node, text = sites[n].node, ast.unparse(sites[n].node)
        is_later = node.lineno > place.node.end_lineno
        if (
            names_in(node) & (set_later if is_later else {assigned_name(place)})
            or text in known
            or len(values) not in (1, steps)
        ):
            continue
        value = values[step if len(values) == steps else 0]
        if value.is_floating_point() and 0 < value.numel() <= MAX_NUMBERS:
            known[text] = Ingredient(copy.deepcopy(node), value.double())
    ordered = sorted(
        known.values(), key=lambda each: (not isinstance(each.node, ast.Name), len(ast.unparse(each.node)))
    )
    names = [each for each in ordered if isinstance(each.node, ast.Name)][:MAX_NAMES]
    return names + [each for each in ordered if not isinstance(each.node, ast.Name)][: MAX_EXPRESSIONS - len(names)]


def terms_of_shape(ingredients: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
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
    for a, b, c in itertools.product(names, ingredients, names):
        yield from _products((a, b, _reciprocal(c)), shape)
    weights = [*names, *(f for each in names for f in _functions(each))]
    for a, b in itertools.product(weights, names):
        yield from _less_its_mean(a, b, shape)
    sums = [s for pair in combinations_with_replacement(names, 2) for s in _sums(pair)]
    for total in sums:
        for each in ingredients:
            yield from _products((each, total), shape)
    for three in combinations_with_replacement(ingredients, 3):
        yield from _products(three, shape)
    for a, b in itertools.product([f for each in names for f in _functions(each)], ingredients):
        yield from _products((a, _reciprocal(b)), shape)
    yield from _matrix_chains(names, shape)
    for total in sums:
        for a, b in combinations_with_replacement(names, 2):
            yield from _products((a, b, total), shape)
    others = [each for each in ingredients if not isinstance(each.node, ast.Name)]
    for a, b, c in itertools.product(names, ingredients, others):
        yield from _products((a, b, _reciprocal(c)), shape)


def _functions(each: Ingredient) -> Iterator[Ingredient]:
    value, node = each.value, each.node
    yield _reciprocal(each)
    yield Ingredient(ast.BinOp(node, ast.Pow(), number(2)), value**2)
    yield Ingredient(ast.BinOp(number(1), ast.Sub(), node), 1 - value)
    if value.dim() >= 2:
        yield Ingredient(ast.Attribute(node, "mT", ast.Load()), value.mT)
    if isinstance(node, ast.Name):
        yield Ingredient(ast.BinOp(number(1), ast.Div(), ast.BinOp(node, ast.Pow(), number(2))), value**-2)
        for function in ("exp", "log", "sqrt", "sigmoid", "tanh", "abs", "sign", "cos", "sin"):
            yield Ingredient(method(node, function), getattr(value, function)())


def _reciprocal(each: Ingredient) -> Ingredient:
    return Ingredient(ast.BinOp(number(1), ast.Div(), each.node), 1 / each.value)


def _sums(pair: tuple[Ingredient, Ingredient]) -> Iterator[Ingredient]:
    """Sums of a product along one dimension, which is kept."""
    try:
        product = pair[0] * pair[1]
    except RuntimeError:  # shapes that do not go together
        return
    for dim in range(product.value.dim()):
        node = method(product.node, "sum", number(dim), keepdim=ast.Constant(True))
        yield Ingredient(node, product.value.sum(dim, keepdim=True))


def _less_its_mean(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """``a · (b - Σ a b)`` and ``a · (b - Σ a b / Σ a)``: derivatives of what is divided by its sum."""
    if a.value.shape != shape or b.value.shape != shape or a.node is b.node:
        return
    product = a * b
    for dim in range(len(shape)):
        sums = [
            Ingredient(method(each.node, "sum", number(dim), keepdim=ast.Constant(True)), each.value.sum(dim, True))
            for each in (product, a)
        ]
        mean = Ingredient(ast.BinOp(sums[0].node, ast.Div(), sums[1].node), sums[0].value / sums[1].value)
        for total in (sums[0], mean):
            rest = ast.BinOp(b.node, ast.Sub(), total.node)
            yield Ingredient(ast.BinOp(a.node, ast.Mult(), rest), a.value * (b.value - total.value))


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


def _matrix_chains(names: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """Products of three matrices, each as it is or transposed."""
    matrices = [each for each in names if each.value.dim() == 2]
    transposed = [Ingredient(ast.Attribute(each.node, "mT", ast.Load()), each.value.mT) for each in matrices]
    for a, b in itertools.product([*matrices, *transposed], repeat=2):
        if len(shape) == 2 and a.value.shape[1] == b.value.shape[0] and a.value.shape[0] == shape[0]:
            pair = Ingredient(ast.BinOp(a.node, ast.MatMult(), b.node), a.value @ b.value)
            for c in (*matrices, *transposed):
                if pair.value.shape[1] == c.value.shape[0] and c.value.shape[1] == shape[1]:
                    yield Ingredient(ast.BinOp(pair.node, ast.MatMult(), c.node), pair.value @ c.value)


def _matrix_products(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    if a.value.dim() == 2 and b.value.dim() == 1 == len(shape):
        for matrix, node in ((a.value, a.node), (a.value.mT, ast.Attribute(a.node, "mT", ast.Load()))):
            if matrix.shape == (shape[0], len(b.value)):
                yield Ingredient(ast.BinOp(node, ast.MatMult(), b.node), matrix @ b.value)
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
