"""Values that expressions of backward should have: those of native's with which a wrong gradient is right."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from types import CodeType

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Incoming, Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.gradients.source_changes.candidates import Candidate, Candidates
from compare.gradients.source_changes.correction import Change, Correction, shown_text
from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Edit, Site, assigned_name
from compare.gradients.source_changes.forward_values import forward_values
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.native_values import native_values
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin, record_values, value_instead

SECOND_DRAW = 1
TOLERANCE = 1e-6  # of the largest number
MAX_RUNS, MAX_VALUES = 1500, 6


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
        """All places."""
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


@dataclass(frozen=True)
class ExpectedValue:
    """A value that an expression should have.

    Attributes:
        value: one after the other, if the expression runs several times.
        words: name of the value; "" for that of a wrong gradient itself.
        is_reversed: the values are those of a loop of native's, from the last one on.
        quantities: what is right with it.
    """

    place: Place
    value: list[Tensor]
    words: str = ""
    is_reversed: bool = False
    quantities: frozenset[str] = frozenset()

    @property
    def step(self) -> int:
        """One of the steps of a loop: neither the first nor the last, which may be special."""
        return len(self.value) // 2


class ExpectedValues:
    """Search for such values.

    Args:
        targets: what is wrong in the variant of the runs.
    """

    def __init__(
        self, candidates: Candidates, runs: EditedRuns, targets: Sequence[Mismatch], probe: Probe | None
    ) -> None:
        self._runs, self._targets, self._probe = runs, targets, probe
        self._expected = {t.quantity: t.oracle for t in targets if t.oracle is not None and not t.is_output}
        self._functions = candidates.functions
        self._places: list[Place] = []
        if len(self._expected) < len(targets):
            return
        for function, sites in candidates.functions:
            if not function.called.in_backward:
                continue
            places = [site for site in sites if is_value(site, function.called)]
            values = record_values(function, places, runs.run)
            order = sorted(values, key=lambda n: (places[n].node.lineno, len(ast.unparse(places[n].node))))
            assigned = {name for n in order if (name := assigned_name(places[n]))}
            for n in order:
                place = Place(function, places[n], values[n], (places, values))
                reads = [m for m in order if _is_same_name(places[n], places[m]) and _are_equal(values[n], values[m])]
                if reads[1:] and n == reads[0] and places[n].node.id not in assigned:
                    self._places.append(replace(place, more=tuple(places[m] for m in reads[1:])))
                self._places.append(place)

    def with_operands(self, expected: ExpectedValue) -> Place:
        """The place with the values that it and others have in a loop whose earlier steps give what they should."""
        place = expected.place
        if len(expected.value) == 1:
            return place
        sites, _ = place.others
        with builtin(INSTEAD, _one_by_one(expected.value, place.present[0].dtype)):
            values = record_values(place.function, sites, self._runs.run, place.sites)
        return replace(place, present=values[sites.index(place.site)], others=(sites, values))

    def of_gradients(self) -> Iterator[ExpectedValue]:
        """Expressions that are a wrong gradient, with the right one."""
        for target in self._targets:
            if target.ours is None or target.oracle is None or target.ours.shape != target.oracle.shape:
                continue
            for place in self._places:
                if len(place.present) == 1 and _is_real_and_equal(place.present[0], target.ours):
                    quantities = frozenset({target.quantity})
                    yield ExpectedValue(place, [target.oracle], quantities=quantities)
                    break

    def of_factors(self) -> Iterator[ExpectedValue]:
        """Factors of a wrong gradient, with what they would have to be, small expressions first."""
        for target in self._targets:
            if target.ours is None or target.oracle is None or target.ours.shape != target.oracle.shape:
                continue
            if not (target.ours != 0).all():
                continue
            ratio = target.oracle / target.ours
            for place in sorted(self._places, key=lambda place: len(ast.unparse(place.site.node))):
                present = place.present[0]
                if len(place.present) == 1 and present.shape == ratio.shape and not present.is_complex():
                    value = [present.double() * ratio]
                    if target.quantity in self._right_with(place, value):
                        yield ExpectedValue(place, value, quantities=frozenset({target.quantity}))

    def of_native(self) -> Iterator[ExpectedValue]:
        """Expressions with a value of native's that makes wrong gradients right, in the order of the lines.

        The gradients of the inputs themselves are not tried: that they are wrong is known.
        """
        first, probe = self._targets[0], self._probe
        if probe is None or probe.case.native is None or not self._places:
            return
        values = _distinct(self._known_values(first.inputs, first.incoming(probe.seed)))
        trials = 0
        for place in self._places:
            for words, in_order in values.items():
                if _have_shapes(in_order, place.present) and not self._are_a_gradient(in_order):
                    for is_reversed in (False, True)[: len(in_order)]:
                        value = in_order[::-1] if is_reversed else in_order
                        trials += 1
                        quantities = self._right_with(place, value) if trials <= MAX_RUNS else frozenset()
                        if quantities:
                            yield ExpectedValue(place, value, words, is_reversed, quantities)

    def is_confirmed(self, expected: ExpectedValue) -> bool:
        """True if the same value of native's makes the same quantities right in another draw."""
        probe = self._probe
        if probe is None or probe.case.native is None:
            return False
        inputs, incoming = probe.draw(SECOND_DRAW), probe.incoming(SECOND_DRAW)
        right = None if inputs is None else probe.run_native(inputs, incoming)
        if inputs is None or right is None:
            return False
        value = self._known_values(inputs, incoming).get(expected.words)
        codes = expected.place.code_with_value
        if not value or codes is None:
            return False
        in_order = value[::-1] if expected.is_reversed else value
        values = _one_by_one(in_order, probe.variant.dtype)
        with builtin(INSTEAD, values), exchanged(codes):
            result = probe.run_ours(inputs, incoming)
        return all(_equals(result.values.get(name), right.get(name)) for name in expected.quantities)

    def _known_values(self, inputs: dict[str, Tensor], incoming: Incoming) -> dict[str, list[Tensor]]:
        """Values that the user's forward and native compute, the nearest ones first."""
        probe = self._probe
        assert probe is not None and probe.case.native is not None
        of_native = native_values(probe.case.native, inputs, incoming)
        of_forward = forward_values(self._functions, lambda: probe.run_ours(inputs, incoming))
        return of_forward | dict(reversed(of_native.items()))  # the last of equal ones is the nearest

    def _are_a_gradient(self, values: list[Tensor]) -> bool:
        """True for the elements of a wrong gradient itself, in whatever shape."""
        numbers = as_real(values[0]).flatten().sort().values
        return len(values) == 1 and any(
            _equals(numbers, gradient.flatten().sort().values) for gradient in self._expected.values()
        )

    def _right_with(self, place: Place, value: list[Tensor]) -> frozenset[str]:
        if all(_equals(a, b) for a, b in zip(value, place.present, strict=True)):
            return frozenset()
        codes = place.code_with_value
        if codes is None:
            return frozenset()
        with builtin(INSTEAD, _one_by_one(value, place.present[0].dtype)):
            result = self._runs.run_edited(codes)
        return frozenset(q for q, gradient in self._expected.items() if _equals(result.values.get(q), gradient))


def _distinct(values: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The first of equal values."""
    known: set[object] = set()
    distinct = {}
    for words, in_order in values.items():
        numbers = torch.cat([as_real(value).double().flatten() for value in in_order])
        sums = (numbers.sum(), numbers.abs().sum(), numbers @ torch.arange(1.0, 1 + len(numbers)).to(numbers))
        key = (len(in_order), in_order[0].shape, *(f"{float(each):.9g}" for each in sums))
        if key not in known:
            known.add(key)
            distinct[words] = in_order
    return distinct


def as_correction(expected: ExpectedValue) -> Correction:
    """The value in words."""
    place = expected.place
    old, line = shown_text(place.site)
    words = expected.words if len(expected.value) == 1 else f"{expected.words}, at each step"
    lines = sorted({site.node.lineno for site in place.more} - {line})
    if lines:
        words += f" (also in line {', '.join(map(str, lines))})"
    change = Change(place.function.code.co_filename, line, old, words, is_code=False)
    return Correction((change,), expected.quantities, makes_all_right=False)


def _is_same_name(first: Site, second: Site) -> bool:
    return isinstance(first.node, ast.Name) and ast.unparse(second.node) == first.node.id


def _are_equal(values: list[Tensor], others: list[Tensor]) -> bool:
    return len(values) == len(others) and all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


def _have_shapes(values: list[Tensor], others: list[Tensor]) -> bool:
    return [(v.shape, v.is_complex()) for v in values] == [(v.shape, v.is_complex()) for v in others]


def _one_by_one(values: list[Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """Each call at a place returns the next value, after the last one the first."""
    of_dtype = values if values[0].is_complex() else [value.to(dtype) for value in values]
    at_place: defaultdict[int, Iterator[Tensor]] = defaultdict(lambda: cycle(of_dtype))
    return lambda n, *_: next(at_place[n])


def _is_real_and_equal(value: Tensor, expected: Tensor) -> bool:
    return not value.is_complex() and _equals(value, expected)


def _equals(got: Tensor | None, expected: Tensor | None) -> bool:
    if got is None or expected is None:
        return False
    got, expected = as_real(got), as_real(expected)
    if got.shape != expected.shape or not got.numel():
        return False
    got, expected = got.double().cpu(), expected.double().cpu()
    return bool(((got - expected).abs() <= TOLERANCE * expected.abs().max()).all())
