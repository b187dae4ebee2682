"""Products of a term with many others: one operation for all factors of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compare.gradients.source_changes.ingredients import Ingredient
from compare.gradients.source_changes.term_shapes import common_shape, ways_to_shape


class Group(NamedTuple):
    """Terms of one shape, with their values in one tensor."""

    terms: list[Ingredient]
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of each."""
        return self.values.shape[1:]


def grouped(terms: Iterable[Ingredient]) -> list[Group]:
    """Terms by their shapes."""
    of_shape: dict[torch.Size, list[Ingredient]] = {}
    for each in terms:
        of_shape.setdefault(each.value.shape, []).append(each)
    return [Group(own, torch.stack([each.value for each in own])) for own in of_shape.values()]


def shaped(each: Ingredient, shape: torch.Size) -> Iterator[Ingredient]:
    """The term itself or expanded, if it fits the shape; its sums over one or two dimensions, if they do."""
    return _shaped([each.text], each.value[None], shape, each.divisor)


def products(a: Ingredient, factors: Sequence[Group], shape: torch.Size, *others: str) -> Iterator[Ingredient]:
    """The product of each two elements with each factor, if it has the shape or a sum of it has.

    Args:
        others: expressions by which is not divided, as by that of ``a`` itself: the rest alone is a term, too.
    """
    for group in factors:
        common = common_shape(a.value.shape, group.shape)
        if common is not None and ways_to_shape(common, shape):
            values = _with_dims(group.values, len(common)) * a.value
            texts = ["" if b.divisor in (a.text, *others) else f"({a.text}) {b.as_factor}" for b in group.terms]
            yield from _shaped(texts, values, shape)


def products_of_two(a: Ingredient, factors: Sequence[Group], shape: torch.Size) -> Iterator[Ingredient]:
    """The product and the matrix products with each factor, if they have the shape or a sum of them has."""
    yield from products(a, factors, shape)
    own = Group([a], a.value[None])
    for group in factors:
        yield from _matrix_products(own, group, shape)
        yield from _matrix_products(group, own, shape)


def _matrix_products(a: Group, b: Group, shape: torch.Size) -> Iterator[Ingredient]:
    """``a @ b`` and ``a.mT @ b``, if they have the shape or a sum of them has; one of the groups is a single term."""
    own, other = a.shape, b.shape
    is_vector = len(own) == 2 and len(other) == 1 == len(shape)
    if not is_vector and min(len(own), len(other), len(shape)) < 2:
        return
    if common_shape(own[:-2], other[:-2]) is None:  # batches that do not go together
        return
    right = b.values[..., None] if is_vector else b.values
    inner, columns = (other[0], shape[:0]) if is_vector else (other[-2], other[-1:])
    for is_transposed, (rows, own_columns) in ((False, own[-2:]), (True, own[:-3:-1])):
        if own_columns != inner or shape[-1 if is_vector else -2 :] != (rows, *columns):
            continue
        left = a.values.mT if is_transposed else a.values
        dims = max(left.dim(), right.dim()) - 1
        values = _with_dims(left, dims) @ _with_dims(right, dims)
        before = [f"({each.text}).mT" if is_transposed else each.text for each in a.terms]
        texts = [f"({left}) @ ({each.text})" for left in before for each in b.terms]
        yield from _shaped(texts, values.squeeze(-1) if is_vector else values, shape)


def _shaped(texts: Sequence[str], values: Tensor, shape: torch.Size, divisor: str = "") -> Iterator[Ingredient]:
    """:func:`shaped` for terms of one shape; an empty text is left out."""
    for dims, kept in ways_to_shape(values.shape[1:], shape):
        if not dims:
            of_shape = values if values.shape[1:] == shape else _with_dims(values, len(shape)).expand(-1, *shape)
            end, inverse = "", divisor
        else:
            of_shape = values.sum([1 + dim for dim in dims], keepdim=kept)
            end = f".sum({dims if len(dims) > 1 else dims[0]}{', keepdim=True' if kept else ''})"
            inverse = ""
        for text, value in zip(texts, of_shape.unbind(), strict=True):
            if text:
                yield Ingredient(f"({text}){end}" if end else text, value, inverse)


def _with_dims(values: Tensor, dims: int) -> Tensor:
    """Values of terms as if each had so many dimensions."""
    return values[(slice(None), *(None,) * (1 + dims - values.dim()))]
