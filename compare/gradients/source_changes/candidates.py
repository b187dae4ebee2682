"""Single edits of the functions that ran, those nearest to the source first."""

from __future__ import annotations

import ast
import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from compare.gradients.source_changes.call_edits import call_edits
from compare.gradients.source_changes.called_functions import CalledFunction, is_number
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.default_edits import default_edits
from compare.gradients.source_changes.dimension_edits import dimension_edits, find_dimensions
from compare.gradients.source_changes.earlier_value_edits import earlier_value_edits
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown
from compare.gradients.source_changes.edits import Edit, Site, find_sites
from compare.gradients.source_changes.einsum_edits import einsum_edits
from compare.gradients.source_changes.expression_edits import (
    comparison_edits,
    constant_edits,
    name,
    name_edits,
    number,
    operator_edits,
)
from compare.gradients.source_changes.halves_edits import halves_edits
from compare.gradients.source_changes.ingredient_edits import (
    copy_edits,
    find_ingredients,
    ingredient_edits,
    saved_ingredient_edits,
)
from compare.gradients.source_changes.insertion_edits import (
    factor_edits,
    function_edits,
    operand_edits,
    product_edits,
    step_edits,
)
from compare.gradients.source_changes.length_edits import length_edits, other_end_edits
from compare.gradients.source_changes.mask_edits import interval_edits, mask_edits
from compare.gradients.source_changes.moved_operands import moved_operand_edits
from compare.gradients.source_changes.repeated_edits import exchanged_name_edits, repeated_edits, scaled_name_edits
from compare.gradients.source_changes.statement_edits import index_edits, order_edits, statement_edits
from compare.gradients.source_changes.subscript_edits import subscript_edits, target_edits, tuple_edits
from compare.gradients.source_changes.transposed_index_edits import transposed_index_edits

MAX_BOUNDS, MAX_NUMBERS = 6, 10

Places = list[tuple[EditableFunction, list[Site]]]


class Rank(enum.IntEnum):
    """When the edits of an expression are tried."""

    FIRST = 0  # they may make all of a wrong result right, and nothing that is right wrong; or it is not known
    LATER = 1  # only a part of it, or the expression has an influence on something that is right
    NEVER = 2  # the expression has no influence on what is wrong


class Candidates:
    """The functions that ran, with the places in them that may be edited.

    Attributes:
        rank: when the edits of a place are tried.
        without_source: those whose source is not at hand, or is another than the one that runs.
    """

    def __init__(self, called: list[CalledFunction]) -> None:
        self.rank: Callable[[Site], Rank] = lambda _: Rank.FIRST
        self.functions: list[tuple[EditableFunction, list[Site]]] = []
        self.without_source: list[CalledFunction] = []
        for each in called:
            try:
                function = EditableFunction(each)
            except SourceUnknown:
                self.without_source.append(each)
                continue
            self.functions.append((function, find_sites(each, function.node)))
        every_site = [site for _, sites in self.functions for site in sites]
        self._ingredients = find_ingredients(every_site)
        self._dimensions = find_dimensions(every_site)
        self._bounds = _find_bounds(called, every_site)
        constants = [site.node.value for site in every_site if isinstance(site.node, ast.Constant)]
        self._numbers = list(dict.fromkeys(value for value in constants if isinstance(value, float)))[:MAX_NUMBERS]

    def first(self) -> Iterator[Candidate]:
        """The edits that mend most mistakes: exchanges, the same at several places, what is saved, insertions."""
        in_backward, in_forward = self._places(Rank.FIRST)
        yield from self._of(
            (self._exchanges, [*in_backward, *in_forward]),
            (self._repeated, [*in_backward, *in_forward]),
            (self._exchanged_names, [*in_backward, *in_forward]),
            (self._saved, in_forward),
            (self._factors, in_backward),
            (self._insertions, in_backward),
        )

    def second(self) -> Iterator[Candidate]:
        """The others: functions of names, intervals, sums of products, parts of the source, insertions in forward."""
        in_backward, in_forward = self._places(Rank.FIRST)
        yield from self._of(
            (self._functions, in_backward),
            (self._intervals, in_backward),
            (self._products, in_backward),
            (self._factors, in_forward),
            (self._insertions, in_forward),
            (self._functions, in_forward),
            (self._intervals, in_forward),
            (self._compositions, in_backward),
        )

    def later(self) -> Iterator[Candidate]:
        """The edits of expressions that have an influence on what is right, or only on a part of what is wrong."""
        in_backward, in_forward = self._places(Rank.LATER)
        yield from self._of(
            (self._exchanges, in_backward),
            (self._repeated, in_backward),
            (self._factors, in_backward),
            (self._insertions, in_backward),
            (self._exchanges, in_forward),
            (self._saved, in_forward),
        )

    def _places(self, rank: Rank) -> tuple[Places, Places]:
        """The places of a rank in backward, and those in forward."""
        of_rank = [(f, [site for site in sites if self.rank(site) == rank]) for f, sites in self.functions]
        in_backward = [each for each in of_rank if each[0].called.in_backward]
        return in_backward, [each for each in of_rank if not each[0].called.in_backward]

    def _of(self, *tiers: Any) -> Iterator[Candidate]:
        for edits, functions in tiers:  # those of a tier are made when the tiers before it were tried
            candidates = [
                Candidate(tuple((function, edit) for edit in together))
                for function, sites in functions
                for together in edits(function, sites)
            ]
            yield from sorted(candidates, key=lambda candidate: candidate.cost)

    def _exchanges(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            called = _called_at(function, site)
            yield from _alone(operator_edits(site))
            yield from _alone(constant_edits(site, self._numbers))
            yield from _alone(comparison_edits(site))
            yield from _alone(name_edits(site, called))
            yield from _alone(call_edits(site, called))
            yield from _alone(default_edits(site, called))
            yield from _alone(einsum_edits(site))
            yield from _alone(subscript_edits(site))
            yield from _alone(target_edits(site, called))
            yield from _alone(tuple_edits(site, called))
            yield from _alone(statement_edits(site))
            yield from _alone(index_edits(site))
            yield from _alone(dimension_edits(site, called, self._dimensions))
        yield from _alone(order_edits(sites))
        yield from _alone(moved_operand_edits(sites, function.called))
        yield from _alone(length_edits(sites, function.called))
        yield from _alone(other_end_edits(sites, function.called))
        yield from _alone(earlier_value_edits(sites, function.called))

    def _repeated(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        yield from repeated_edits([edit for (edit,) in self._exchanges(function, sites)])
        yield from scaled_name_edits(sites, function.called)
        yield from halves_edits(sites)

    def _exchanged_names(self, function: EditableFunction, _: list[Site]) -> Iterator[tuple[Edit, ...]]:
        """Exchanges of places of two ranks too: together they may have an influence on all that is wrong."""
        every = next(sites for each, sites in self.functions if each is function)
        yield from exchanged_name_edits([site for site in every if self.rank(site) != Rank.NEVER], function.called)

    def _factors(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(factor_edits(site, _called_at(function, site)))

    def _insertions(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            called = _called_at(function, site)
            dims = max((tensor.dim() for tensor in called.tensors.values()), default=0)
            yield from _alone(step_edits(site, called, dims))
            yield from _alone(operand_edits(site, called))
            yield from _alone(transposed_index_edits(site, called))
            yield from _alone(mask_edits(site, called, self._bounds))

    def _functions(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(function_edits(site, _called_at(function, site)))

    def _intervals(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(interval_edits(site, _called_at(function, site), self._bounds))

    def _products(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(product_edits(site, _called_at(function, site)))

    def _saved(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(copy_edits(site, function.called))
            yield from _alone(saved_ingredient_edits(site, self._ingredients))

    def _compositions(self, function: EditableFunction, sites: list[Site]) -> Iterator[tuple[Edit, ...]]:
        for site in sites:
            yield from _alone(ingredient_edits(site, _called_at(function, site), self._ingredients))


def _alone(edits: Iterable[Edit]) -> Iterator[tuple[Edit]]:
    """Each edit by itself."""
    return ((edit,) for edit in edits)


def _called_at(function: EditableFunction, site: Site) -> CalledFunction:
    """The function with the values that names have at a site: those of an inner function, too."""
    called = function.called
    for node in site.ancestors:
        if node is not function.node and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            own_name = node.name if isinstance(node, ast.FunctionDef) else "<lambda>"
            decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
            called = called.within(own_name, min([node.lineno, *(each.lineno for each in decorators)]))
    return called


def _find_bounds(called: list[CalledFunction], sites: list[Site]) -> list[ast.expr]:
    """Numbers of the source that a mask may compare with."""
    names = [name(each) for each in called[0].constants] if called else []
    constants: list[Any] = [site.node.value for site in sites if isinstance(site.node, ast.Constant)]
    values = dict.fromkeys(value for value in constants if is_number(value))
    return [*names, *(number(sign * value) for value in values for sign in (1, -1))][:MAX_BOUNDS]
