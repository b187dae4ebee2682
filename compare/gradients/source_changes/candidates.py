"""Single edits of the functions that ran, those nearest to the source first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compare.gradients.source_changes.call_edits import call_edits
from compare.gradients.source_changes.called_functions import CalledFunction, is_number
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown
from compare.gradients.source_changes.edits import Edit, Site, find_sites
from compare.gradients.source_changes.expression_edits import (
    comparison_edits,
    constant_edits,
    name,
    name_edits,
    number,
    operator_edits,
    whole_name_edits,
)
from compare.gradients.source_changes.ingredient_edits import find_ingredients, ingredient_edits
from compare.gradients.source_changes.insertion_edits import mask_edits, operand_edits, product_edits, step_edits
from compare.gradients.source_changes.moved_operands import moved_operand_edits
from compare.gradients.source_changes.outside_effects import has_outside_effects, stores_outside
from compare.gradients.source_changes.statement_edits import index_edits, order_edits, statement_edits
from compare.gradients.source_changes.subscript_edits import subscript_edits, tuple_edits

MAX_BOUNDS = 6


@dataclass(frozen=True)
class Candidate:
    """One edit of one function."""

    function: EditableFunction
    edit: Edit

    @property
    def cost(self) -> int:
        """Cost of the edit; backward, where most mistakes are, comes before forward."""
        return self.edit.cost + (not self.function.called.in_backward)


class Candidates:
    """The functions that ran, with the places in them that may be edited.

    There are none if one of the functions does more than compute: files, processes, global names. What an edit of
    any function that ran changes could get there.
    """

    def __init__(self, called: list[CalledFunction]) -> None:
        self.functions: list[tuple[EditableFunction, list[Site]]] = []
        if any(has_outside_effects(each) for each in called):
            called = []
        for each in called:
            try:
                function = EditableFunction(each)
            except SourceUnknown:
                continue
            self.functions.append((function, find_sites(each, function.node)))
        if any(stores_outside(function.node, function.called) for function, _ in self.functions):
            self.functions = []
        every_site = [site for _, sites in self.functions for site in sites]
        self._ingredients = find_ingredients(every_site)
        self._bounds = _find_bounds(called, every_site)

    def __iter__(self) -> Iterator[Candidate]:
        """Every edit: exchanges first, then insertions, sums of products, and other parts of the source."""
        tiers = (self._exchanges, self._insertions, self._products, self._insertions_in_forward, self._compositions)
        for edits in tiers:
            candidates = [
                Candidate(function, e) for function, sites in self.functions for e in edits(function, sites)
            ]
            yield from sorted(candidates, key=lambda candidate: candidate.cost)

    def _exchanges(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        called = function.called
        for site in sites:
            yield from operator_edits(site)
            yield from constant_edits(site)
            yield from comparison_edits(site)
            yield from name_edits(site, called)
            yield from call_edits(site, called)
            yield from subscript_edits(site)
            yield from tuple_edits(site, called)
            yield from statement_edits(site)
            yield from index_edits(site)
        yield from whole_name_edits(sites, called)
        yield from order_edits(sites)
        yield from moved_operand_edits(sites, called)

    def _insertions(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        if function.called.in_backward:
            yield from self._all_insertions(function, sites)

    def _insertions_in_forward(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        if not function.called.in_backward:
            yield from self._all_insertions(function, sites)

    def _all_insertions(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        called = function.called
        dims = max((tensor.dim() for tensor in called.tensors.values()), default=0)
        for site in sites:
            yield from step_edits(site, called, dims)
            yield from operand_edits(site, called)
            yield from mask_edits(site, called, self._bounds)

    def _compositions(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        called = function.called
        if not called.in_backward:
            return
        for site in sites:
            yield from ingredient_edits(site, called, self._ingredients)

    def _products(self, function: EditableFunction, sites: list[Site]) -> Iterator[Edit]:
        for site in sites if function.called.in_backward else []:
            yield from product_edits(site, function.called)


def _find_bounds(called: list[CalledFunction], sites: list[Site]) -> list[ast.expr]:
    """Numbers of the source that a mask may compare with."""
    names = [name(each) for each in called[0].constants] if called else []
    constants: list[Any] = [site.node.value for site in sites if isinstance(site.node, ast.Constant)]
    values = dict.fromkeys(value for value in constants if is_number(value))
    return [*names, *(number(sign * value) for value in values for sign in (1, -1))][:MAX_BOUNDS]
