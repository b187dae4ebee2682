"""Expressions of backward whose values may be exchanged for others while it runs."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from compare.gradients.numbers import as_real
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.candidates import Candidates, Rank
from compare.gradients.source_changes.correction import Change, shown_text
from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edits import Edit, Site, assigned_name
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.recorded_values import record_values, value_instead

TOLERANCE = 1e-6  # of the largest number


@dataclass(frozen=True)
class Place:
    """An expression of a function of backward.

    Attributes:
        more: for a name, the other places where it is read.
        present: the values that it has, one after the other.
        others: every expression of the function that may be a value, with the values that they have.
    """

    function: EditableFunction
    site: Site
    present: list[Tensor]
    others: tuple[list[Site], dict[int, list[Tensor]]]
    more: tuple[Site, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The first place and the others."""
        return self.site, *self.more

    def with_edit(self, edit: Edit) -> Candidate:
        """The edit of the first place, made at each."""
        _, _, new = edit.changes[0]
        same = [(self.function, site.edit(new, edit.cost)) for site in self.more]
        return Candidate(((self.function, edit), *same))

    @cached_property
    def code_with_value(self) -> dict[EditableFunction, CodeType] | None:
        """Code that takes the value of the expression from the builtin name ``INSTEAD``."""
        edits = (site.edit(value_instead(n), 1) for n, site in enumerate(self.sites))
        candidate = Candidate(tuple((self.function, edit) for edit in edits))
        with candidate.made():
            return candidate.compiled()

    @cached_property
    def code_with_changed_value(self) -> dict[EditableFunction, CodeType] | None:
        """Code that gives each value of the expression to ``INSTEAD``, and takes another one from it."""
        edits = (site.edit(value_instead(n, site.node), 1) for n, site in enumerate(self.sites))
        candidate = Candidate(tuple((self.function, edit) for edit in edits))
        with candidate.made():
            return candidate.compiled()

    def change(self, words: str) -> Change:
        """A change that tells in words which value should be there."""
        old, line = shown_text(self.site)
        lines = sorted({site.node.lineno for site in self.more} - {line})
        if lines:
            words += f" (also in line {', '.join(map(str, lines))})"
        return Change(self.function.code.co_filename, line, old, words, is_code=False)


def find_places(candidates: Candidates, run: Callable[[], Any]) -> list[Place]:
    """Expressions of backward with the values that they have in a run, in the order of the lines.

    A name that is read several times, and not assigned by itself, is first all its places together.
    """
    places: list[Place] = []
    for function, sites in candidates.functions:
        if not function.called.in_backward:
            continue
        own = [site for site in sites if is_value(site, function.called)]
        values = record_values(function, own, run)
        order = sorted(values, key=lambda n: (own[n].node.lineno, len(ast.unparse(own[n].node))))
        assigned = {name for n in order if (name := assigned_name(own[n]))}
        for n in order:
            place = Place(function, own[n], values[n], (own, values))
            reads = [
                m
                for m in order
                if _is_same_name(own[n], own[m])
                and _are_equal(values[n], values[m])
                and candidates.rank(own[m]) != Rank.NEVER  # not for its shape alone, say
            ]
            if reads[1:] and n == reads[0] and own[n].node.id not in assigned:
                places.append(replace(place, more=tuple(own[m] for m in reads[1:])))
            places.append(place)
    return places


def one_by_one(values: Sequence[Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function for ``INSTEAD``: each call at a place returns the next value, after the last one the first."""
    of_dtype = [value if value.is_complex() else value.to(dtype) for value in values]
    at_place: defaultdict[int, Iterator[Tensor]] = defaultdict(lambda: cycle(of_dtype))
    return lambda n, *_: next(at_place[n]).clone()  # the function may write into it


def are_equal(got: Tensor | None, expected: Tensor | None) -> bool:
    """True for the same shape and about the same numbers."""
    if got is None or expected is None:
        return False
    got, expected = as_real(got), as_real(expected)
    if got.shape != expected.shape or not got.numel():
        return False
    got, expected = got.double().cpu(), expected.double().cpu()
    return bool(((got - expected).abs() <= TOLERANCE * expected.abs().max()).all())


def _is_same_name(first: Site, second: Site) -> bool:
    return isinstance(first.node, ast.Name) and ast.unparse(second.node) == first.node.id


def _are_equal(values: list[Tensor], others: list[Tensor]) -> bool:
    return len(values) == len(others) and all(torch.equal(a, b) for a, b in zip(values, others, strict=True))
