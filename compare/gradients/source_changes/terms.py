"""Terms that formulas are made of: products of expressions of the source, functions of them, and sums of products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product

import torch

from compare.gradients.source_changes.ingredients import Ingredient
from compare.gradients.source_changes.term_products import Group, grouped, products, products_of_two, shaped
from compare.gradients.source_changes.term_shapes import common_shape

MAX_MATRICES = 5  # of which products of three come before rarer terms


def terms_of_shape(ingredients: Sequence[Ingredient], shape: torch.Size) -> Iterator[Ingredient]:
    """Terms of a shape, the simple ones first."""
    names = [each for each in ingredients if each.is_name]
    functions_of_names = [f for each in names for f in _functions(each)]
    functions = [*functions_of_names, *(f for each in ingredients if not each.is_name for f in _functions(each))]
    reciprocals_of_names = grouped(_reciprocal(each) for each in names)
    from_each_on = [grouped(ingredients[n:]) for n in range(len(ingredients))]
    for each in (*ingredients, *functions):
        yield from shaped(each, shape)
    for a, others in zip(ingredients, from_each_on, strict=True):
        yield from products_of_two(a, others, shape)
    if sum(each.value.dim() == 2 for each in names) <= MAX_MATRICES:
        yield from _matrix_chains(names, shape)
    all_functions = grouped(functions)
    for a in ingredients:
        yield from products_of_two(a, all_functions, shape)
    for a, b in product(names, ingredients):
        yield from _products_of_three(a, b, reciprocals_of_names, shape)
    for a, b in product((*names, *functions_of_names), names):
        yield from _less_its_mean(a, b, shape)
    sums = [s for pair in combinations_with_replacement(names, 2) for s in _sums(*pair)]
    all_sums = grouped(sums)
    for a in ingredients:
        yield from products_of_two(a, all_sums, shape)
    for total in sums:
        yield from products(total, reciprocals_of_names, shape)
    for n, a in enumerate(ingredients):
        for b, others in zip(ingredients[n:], from_each_on[n:], strict=True):
            yield from _products_of_three(a, b, others, shape)
    reciprocals = grouped(_reciprocal(each) for each in ingredients)
    for a in functions_of_names:
        yield from products_of_two(a, reciprocals, shape)
    if sum(each.value.dim() == 2 for each in names) > MAX_MATRICES:
        yield from _matrix_chains(names, shape)
    for a, b in combinations_with_replacement(names, 2):
        yield from _products_of_three(a, b, all_sums, shape)
    other_reciprocals = grouped(_reciprocal(each) for each in ingredients if not each.is_name)
    for a, b in product(names, ingredients):
        yield from _products_of_three(a, b, other_reciprocals, shape)


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
        total, divisor = _sum(a.times(b), dim), _sum(a, dim)
        for mean in (total, total.times(_reciprocal(divisor))):
            yield a.times(Ingredient(f"({b.text}) - ({mean.text})", b.value - mean.value))


def _product(a: Ingredient, b: Ingredient) -> Ingredient | None:
    """The product of each two elements; None for shapes that do not go together."""
    return None if common_shape(a.value.shape, b.value.shape) is None else a.times(b)


def _products_of_three(
    a: Ingredient, b: Ingredient, factors: Sequence[Group], shape: torch.Size
) -> Iterator[Ingredient]:
    """The product of two with each factor, if it has the shape or a sum of it has."""
    pair = _product(a, b)
    if pair is not None:
        yield from products(pair, factors, shape, a.text, b.text)


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
