"""Terms that formulas are made of: products of expressions of the source, functions of them, and sums of products."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Site, assigned_name
from compare.gradients.source_changes.ending_loops import names_in
from compare.gradients.source_changes.term_shapes import common_shape, ways_to_shape

MAX_NAMES, MAX_EXPRESSIONS, MAX_NUMBERS = 8, 22, 2000
MAX_MATRICES = 5  # of which products of three come before rarer terms


@dataclass(frozen=True)
class Ingredient:
    """An expression of the source, and its value.

    Attributes:
        text: the expression; a tree is made only of the few that fit.
        divisor: what 1 is divided by, if the expression is such a quotient.
    """

    text: str
    value: Tensor
    divisor: str = ""

    @property
    def node(self) -> ast.expr:
        """The expression as a tree, of no place in a file."""
        tree = ast.parse(self.text, mode="eval").body
        for node in ast.walk(tree):
            for attribute in node._attributes:
                vars(node).pop(attribute, None)
        return tree

    @property
    def is_name(self) -> bool:
        """True for a name alone."""
        return self.text.isidentifier()

    def __mul__(self, other: Ingredient) -> Ingredient:
        factor = f"/ ({other.divisor})" if other.divisor else f"* ({other.text})"
        return Ingredient(f"({self.text}) {factor}", self.value * other.value)


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
            known[text] = Ingredient(text, value.double())
    ordered = sorted(known.values(), key=lambda each: (not each.is_name, len(each.text)))
    names = [each for each in ordered if each.is_name][:MAX_NAMES]
    return names + [each for each in ordered if not each.is_name][: MAX_EXPRESSIONS - len(names)]


def terms_of_shape(ingredients: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """Terms of a shape, the simple ones first."""
    names = [each for each in ingredients if each.is_name]
    functions = [f for each in ingredients for f in _functions(each)]
    functions_of_names = [f for each in names for f in _functions(each)]
    reciprocals = {each.text: _reciprocal(each) for each in ingredients}
    others = [each for each in ingredients if not each.is_name]
    for each in (*ingredients, *functions):
        yield from _shaped(each, shape)
    for a, b in combinations_with_replacement(ingredients, 2):
        yield from _products_of_two(a, b, shape)
    if sum(each.value.dim() == 2 for each in names) <= MAX_MATRICES:
        yield from _matrix_chains(names, shape)
    for a, b in product(ingredients, functions):
        yield from _products_of_two(a, b, shape)
    yield from _products(product(names, ingredients), [reciprocals[each.text] for each in names], shape)
    for a, b in product((*names, *functions_of_names), names):
        yield from _less_its_mean(a, b, shape)
    sums = [s for pair in combinations_with_replacement(names, 2) for s in _sums(*pair)]
    for total, each in product(sums, ingredients):
        yield from _products_of_two(each, total, shape)
    for total, each in product(sums, names):
        yield from _shaped_product(total, reciprocals[each.text], shape)
    for n, a in enumerate(ingredients):
        for m, b in enumerate(ingredients[n:], n):
            yield from _products([(a, b)], ingredients[m:], shape)
    for a, b in product(functions_of_names, ingredients):
        yield from _products_of_two(a, reciprocals[b.text], shape)
    if sum(each.value.dim() == 2 for each in names) > MAX_MATRICES:
        yield from _matrix_chains(names, shape)
    yield from _products(combinations_with_replacement(names, 2), sums, shape)
    yield from _products(product(names, ingredients), [reciprocals[each.text] for each in others], shape)


def _functions(each: Ingredient) -> Iterator[Ingredient]:
    value, text = each.value, f"({each.text})"
    yield _reciprocal(each)
    yield Ingredient(f"{text} ** 2", value**2)
    yield Ingredient(f"1 - {text}", 1 - value)
    if value.dim() >= 2:
        yield _transposed(each)
    if each.is_name:
        yield Ingredient(f"1 / {text} ** 2", value**-2, f"{text} ** 2")
        for function in ("exp", "log", "sqrt", "sigmoid", "tanh", "abs", "sign", "cos", "sin"):
            yield Ingredient(f"{text}.{function}()", getattr(value, function)())


def _reciprocal(each: Ingredient) -> Ingredient:
    return Ingredient(f"1 / ({each.text})", 1 / each.value, each.text)


def _transposed(each: Ingredient) -> Ingredient:
    return Ingredient(f"({each.text}).mT", each.value.mT)


def _sum(each: Ingredient, dim: int) -> Ingredient:
    return Ingredient(f"({each.text}).sum({dim}, keepdim=True)", each.value.sum(dim, keepdim=True))


def _sums(a: Ingredient, b: Ingredient) -> Iterator[Ingredient]:
    """Sums of a product along one dimension, which is kept."""
    whole = _product(a, b)
    if whole is not None:
        yield from (_sum(whole, dim) for dim in range(whole.value.dim()))


def _less_its_mean(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """``a · (b - Σ a b)`` and ``a · (b - Σ a b / Σ a)``: derivatives of what is divided by its sum."""
    if a.value.shape != shape or b.value.shape != shape or a is b:
        return
    for dim in range(len(shape)):
        total, divisor = _sum(a * b, dim), _sum(a, dim)
        for mean in (total, total * _reciprocal(divisor)):
            yield a * Ingredient(f"({b.text}) - ({mean.text})", b.value - mean.value)


def _product(a: Ingredient, b: Ingredient) -> Ingredient | None:
    """The product of each two numbers; None for shapes that do not go together."""
    return None if common_shape(a.value.shape, b.value.shape) is None else a * b


def _shaped_product(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """The product of each two numbers, if it has the shape or a sum of it has; none of an expression over itself."""
    if b.divisor == a.text:
        return
    common = common_shape(a.value.shape, b.value.shape)
    if common is not None and ways_to_shape(common, shape):
        yield from _shaped(a * b, shape)


def _products(
    pairs: Iterable[tuple[Ingredient, Ingredient]], factors: Sequence[Ingredient], shape: torch.Size
) -> Iterator[Ingredient]:
    """The product of each pair with each factor, if it has the shape or a sum of it has."""
    for a, b in pairs:
        pair = _product(a, b)
        if pair is not None:
            for factor in factors:
                if factor.divisor in (a.text, b.text):  # the other one alone
                    continue
                yield from _shaped_product(pair, factor, shape)


def _products_of_two(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """The product and the matrix products of two, if they have the shape or a sum of them has."""
    yield from _shaped_product(a, b, shape)
    yield from _matrix_products(a, b, shape)
    yield from _matrix_products(b, a, shape)


def _matrix_product(a: Ingredient, b: Ingredient) -> Ingredient:
    return Ingredient(f"({a.text}) @ ({b.text})", a.value @ b.value)


def _matrix_chains(names: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """Products of three matrices, each as it is or transposed."""
    matrices = [each for each in names if each.value.dim() == 2]
    matrices += [_transposed(each) for each in matrices]
    for a, b in product(matrices, repeat=2):
        if len(shape) == 2 and a.value.shape[1] == b.value.shape[0] and a.value.shape[0] == shape[0]:
            pair = _matrix_product(a, b)
            for c in matrices:
                if pair.value.shape[1] == c.value.shape[0] and c.value.shape[1] == shape[1]:
                    yield _matrix_product(pair, c)


def _matrix_products(a: Ingredient, b: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """``a @ b`` and ``a.mT @ b``, if they have the shape or a sum of them has."""
    own, other = a.value.shape, b.value.shape
    is_vector = len(own) == 2 and len(other) == 1 == len(shape)
    if not is_vector and min(len(own), len(other), len(shape)) < 2:
        return
    if common_shape(own[:-2], other[:-2]) is None:  # batches that do not go together
        return
    inner, columns = (other[0], shape[:0]) if is_vector else (other[-2], other[-1:])
    for left, (rows, own_columns) in ((a, own[-2:]), (None, own[:-3:-1])):  # None: transposed
        if own_columns != inner or shape[-1 if is_vector else -2 :] != (rows, *columns):
            continue
        yield from _shaped(_matrix_product(left or _transposed(a), b), shape)


def _shaped(each: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """The term itself or expanded, if it fits the shape; its sums over one or two dimensions, if they do."""
    for dims, kept in ways_to_shape(each.value.shape, shape):
        if not dims:
            yield each if each.value.shape == shape else Ingredient(each.text, each.value.expand(shape), each.divisor)
            continue
        arguments = f"{dims if len(dims) > 1 else dims[0]}{', keepdim=True' if kept else ''}"
        yield Ingredient(f"({each.text}).sum({arguments})", each.value.sum(dims, keepdim=kept))
