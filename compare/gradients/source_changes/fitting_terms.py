"""The term or factor that an expression lacks, where its right value is known: no run for each one that is tried."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice, product

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import number
from compare.gradients.source_changes.ingredients import Ingredient
from compare.gradients.source_changes.terms import terms_of_shape

MAX_TERMS = 12_000
MAX_EDITS, MAX_TREES = 8, 40  # edits, and those with the shortest terms, of which trees are made
CHUNK = 1000
MAX_TRIED = 20_000  # pairs of which one sum of each fits: of repeated numbers there are many
MAX_FOR_TWO, MIN_FOR_TWO = 6000, 5  # terms of which two are tried together; elements that do not agree by chance
RELATIVE_ERROR, RATIO_ERROR = 1e-9, 1e-7
COEFFICIENTS = (1, 2, 3, 4, 0.5, 0.25, 1.5)
COST = 5


@dataclass(frozen=True)
class _Fit:
    """Terms with their coefficients: together they are what an expression lacks ("term", "factor"), or all of it."""

    kind: str
    terms: tuple[tuple[Ingredient, float], ...]

    @property
    def length(self) -> int:
        """About the length of what is new in the source."""
        return sum(len(term.text) + (coefficient != 1) for term, coefficient in self.terms)


class Terms:
    """Terms of one shape, with a few sums of each that tell which ones fit.

    Args:
        numbers: named ones, which are told in place of their values.
    """

    def __init__(self, ingredients: Sequence[Ingredient], shape: torch.Size, numbers: Mapping[str, float]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._weights = torch.rand(shape.numel(), 3, generator=generator, dtype=torch.float64) + 0.5
        one = Ingredient("1", torch.ones(shape, dtype=torch.float64))
        self._terms = [one, *islice(terms_of_shape(ingredients, shape), MAX_TERMS)]
        self._sums = torch.zeros(len(self._terms), 3, dtype=torch.float64)
        for start in range(0, len(self._terms), CHUNK):
            values = torch.stack([term.value for term in self._terms[start : start + CHUNK]])
            values = values.view(len(values), -1)
            sums = values @ self._weights
            if shape.numel() > 1:  # other terms that are one number, such as x.sign(), are that only in this run
                first = values[:, :1]
                sums[((values - first).abs() <= RELATIVE_ERROR * first.abs()).all(1)] = torch.nan
            self._sums[start : start + CHUNK] = sums
        self._sums[0] = self._weights.sum(0)
        named = {key: value for key, value in numbers.items() if value not in (0, 1, 2, -1, -2)}
        # Texts by sizes, and whether the number that a text stands for is negative.
        self._named = {2 * abs(value): (f"2 * {key}", value < 0) for key, value in named.items()}
        self._named |= {abs(value): (key, value < 0) for key, value in named.items()}
        self._coefficients = torch.tensor([*COEFFICIENTS, *self._named], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._terms)

    def edits(self, site: Site, present: Tensor, expected: Tensor, *, of_two: bool = False) -> Iterator[Edit]:
        """Edits that give an expression its expected value: a term or a factor more, or another expression.

        Args:
            present: the value that the expression has.
            expected: the one that it should have.
            of_two: a sum of two terms in place of one.
        """
        if present.is_complex() or expected.is_complex():
            return
        present, expected = present.double(), expected.double()
        if not (present.isfinite().all() and expected.isfinite().all()):
            return
        if _is_near(present, expected):  # nothing is missing, and each term would fit 0 times
            return
        goals = {"term": expected - present, "whole": expected}
        if of_two and expected.numel() >= MIN_FOR_TWO:
            fits = [fit for kind, goal in goals.items() for fit in self._sums_of_two(kind, goal)]
        elif not of_two:
            if (present != 0).all():
                goals["factor"] = expected / present
            fits = [fit for kind, goal in goals.items() for fit in self._fitting(kind, goal)]
        else:
            return
        nodes = [self._edited(site.node, fit) for fit in nsmallest(MAX_TREES, fits, key=lambda fit: fit.length)]
        edits = [site.edit(node, COST + of_two) for node in nodes if node is not None]
        yield from sorted(edits, key=_length_of_what_is_new)[:MAX_EDITS]

    def _fitting(self, kind: str, goal: Tensor) -> Iterator[_Fit]:
        sums = goal.flatten() @ self._weights
        ratios = sums[0] / self._sums[:, 0]
        sizes = ratios.abs()
        near = self._coefficients[(self._coefficients - sizes[:, None]).abs().argmin(1)]
        fits = ((ratios[:, None] * self._sums - sums).abs() <= RATIO_ERROR * sums.abs().max()).all(1)
        fits &= ratios.isfinite() & ((near - sizes).abs() <= RATIO_ERROR * near)
        for n in fits.nonzero().flatten().tolist():
            term, coefficient = self._terms[n], float(near[n].copysign(ratios[n]))
            if _is_near(coefficient * term.value, goal):
                yield _Fit(kind, ((term, coefficient),))

    def _sums_of_two(self, kind: str, goal: Tensor) -> Iterator[_Fit]:
        """Two terms, each plus or minus, once or twice, that are together what an expression lacks, or all of it."""
        left = MAX_TRIED
        sums = goal.flatten() @ self._weights
        own = self._sums[:MAX_FOR_TWO]
        firsts, order = own[:, 0].sort()
        limit = RATIO_ERROR * float(sums.abs().max())
        for a, b in product((1, -1, 2, -2), repeat=2):
            needed = (sums - a * own) / b
            low, high = (torch.searchsorted(firsts, needed[:, 0].contiguous() + shift) for shift in (-limit, limit))
            counts = high - low  # of terms whose first sum is what the n-th term needs
            n = torch.repeat_interleave(torch.arange(len(own)), counts)[:left]
            nth = torch.arange(len(n)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)[:left]
            m = order[low[n] + nth]
            fits = (n < m) & ((needed[n] - own[m]).abs() <= limit).all(1)
            for first, second in zip(n[fits].tolist(), m[fits].tolist(), strict=True):
                terms = (self._terms[first], a), (self._terms[second], b)
                if _is_near(sum(factor * term.value for term, factor in terms), goal):
                    yield _Fit(kind, terms)
            left -= len(n)

    def _edited(self, node: ast.expr, fit: _Fit) -> ast.expr | None:
        (first, coefficient), *others = fit.terms
        edited = self._edited_by_one(node, fit.kind, first, coefficient)
        for term, coefficient in others:
            edited = None if edited is None else self._edited_by_one(edited, "term", term, coefficient)
        return edited

    def _edited_by_one(self, node: ast.expr, kind: str, term: Ingredient, coefficient: float) -> ast.expr | None:
        size = abs(coefficient)
        text, is_negative = self._named.get(size, ("", False))
        factor = _named_number(text) if text else number(int(size) if size == int(size) else size)
        coefficient = -coefficient if is_negative else coefficient
        scaled = ast.BinOp(factor, ast.Mult(), term.node)
        if size == 1 or term.text == "1":
            scaled = term.node if size == 1 else factor
        if kind == "term":
            return ast.BinOp(node, ast.Add() if coefficient > 0 else ast.Sub(), scaled)
        if kind == "factor":
            product = ast.BinOp(node, ast.Mult(), scaled)
            return product if coefficient > 0 else ast.UnaryOp(ast.USub(), product)
        if ast.unparse(term.node) == ast.unparse(node):  # the expression times a number
            return None
        return scaled if coefficient > 0 else ast.UnaryOp(ast.USub(), scaled)


def _named_number(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _length_of_what_is_new(edit: Edit) -> int:
    _, old, new = edit.changes[0]
    before, after = ast.unparse(old), ast.unparse(new or old)
    return len(after) - len(before) * (before in after) // 2


def _is_near(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= RELATIVE_ERROR * b.abs().max()).all())
