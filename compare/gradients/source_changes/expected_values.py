"""Values that expressions of backward should have: those of native's with which a wrong gradient is right."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Incoming, Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.gradients.source_changes.candidates import Candidates, Rank
from compare.gradients.source_changes.correction import Correction
from compare.gradients.source_changes.editable_function import exchanged
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.forward_runs import Functions, run_forwards
from compare.gradients.source_changes.forward_values import forward_values
from compare.gradients.source_changes.native_values import native_values
from compare.gradients.source_changes.places import Place, are_equal, find_places, one_by_one
from compare.gradients.source_changes.predicted_gradients import PredictedGradients
from compare.gradients.source_changes.recorded_equations import RecordedEquations
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin, record_values

SECOND_DRAW = 1
MAX_RUNS, MAX_CALLS = 800, 240_000  # runs with a value of native's, and calls of functions in all of them
MAX_VALUES = 6


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
        functions: those of the user that run, native's too.
        targets: what is wrong in the variant of the runs.

    Attributes:
        places: expressions of backward.
        with_influence: those that may have an influence on what is wrong.
        recorded: equations of their values.
        predicted: gradients with other values of theirs.
    """

    def __init__(
        self,
        candidates: Candidates,
        functions: Functions,
        runs: EditedRuns,
        targets: Sequence[Mismatch],
        probe: Probe | None,
    ) -> None:
        self._runs, self._targets, self._probe = runs, targets, probe
        self._expected = {t.quantity: t.oracle for t in targets if t.oracle is not None and not t.is_output}
        self._functions = functions
        self._num_runs = 0
        is_known = len(self._expected) == len(targets)
        self.places = find_places(candidates, runs.run) if is_known else []
        self.with_influence = [place for place in self.places if candidates.rank(place.site) != Rank.NEVER]
        self.recorded = RecordedEquations(self.with_influence, runs, targets)
        self.predicted = PredictedGradients(self.recorded)

    def with_operands(self, expected: ExpectedValue) -> Place:
        """The place with the values that it and others have in a loop whose earlier steps give what they should."""
        place = expected.place
        if len(expected.value) == 1:
            return place
        sites, _ = place.others
        with builtin(INSTEAD, one_by_one(expected.value, place.present[0].dtype)):
            values = record_values(place.function, sites, self._runs.run, place.sites)
        return replace(place, present=values[sites.index(place.site)], others=(sites, values))

    def of_gradients(self) -> Iterator[ExpectedValue]:
        """Expressions that are a wrong gradient, with the right one."""
        for target in self._targets:
            if target.ours is None or target.oracle is None or target.ours.shape != target.oracle.shape:
                continue
            for place in self.places:
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
            for place in sorted(self.with_influence, key=lambda place: len(ast.unparse(place.site.node))):
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
        if probe is None or probe.case.native is None or not self.places:
            return
        values = _distinct(self._known_values(first.inputs, first.incoming(probe.seed)))
        last = self._num_runs + min(MAX_RUNS, MAX_CALLS // self._runs.cost)
        for place in self.with_influence:
            for words, in_order in values.items():
                if _may_stand_for(in_order, place.present) and not self._are_a_gradient(in_order):
                    for is_reversed in (False, True)[: len(in_order)]:
                        value = in_order[::-1] if is_reversed else in_order
                        quantities = self._right_with(place, value) if self._num_runs < last else frozenset()
                        if quantities:
                            yield ExpectedValue(place, value, words, is_reversed, quantities)

    def is_confirmed(self, expected: ExpectedValue) -> bool:
        """True if the same value of native's makes the same quantities right in another draw."""
        probe = self._probe
        if probe is None or probe.case.native is None:
            return False
        inputs, incoming = probe.draw(SECOND_DRAW), probe.incoming(SECOND_DRAW)
        with self._runs.from_the_start():
            right = None if inputs is None else probe.run_native(inputs, incoming)
        if inputs is None or right is None:
            return False
        value = self._known_values(inputs, incoming).get(expected.words)
        codes = expected.place.code_with_value
        if not value or codes is None:
            return False
        in_order = value[::-1] if expected.is_reversed else value
        values = one_by_one(in_order, probe.variant.dtype)
        with self._runs.from_the_start(), builtin(INSTEAD, values), exchanged(codes):
            result = probe.run_ours(inputs, incoming)
        return all(are_equal(result.values.get(name), right.get(name)) for name in expected.quantities)

    def _known_values(self, inputs: dict[str, Tensor], incoming: Incoming) -> dict[str, list[Tensor]]:
        """Values that the user's forward and native compute, the nearest ones first."""
        probe = self._probe
        assert probe is not None and probe.case.native is not None
        with self._runs.from_the_start():
            of_native = native_values(probe.case.native, inputs, incoming)
        with self._runs.from_the_start():
            of_forward = forward_values(run_forwards(self._functions, lambda: probe.run_ours(inputs, incoming)))
        return of_forward | dict(reversed(of_native.items()))  # the last of equal ones is the nearest

    def _are_a_gradient(self, values: list[Tensor]) -> bool:
        """True for the elements of a wrong gradient itself, in whatever shape."""
        numbers = as_real(values[0]).flatten().sort().values
        return len(values) == 1 and any(
            are_equal(numbers, gradient.flatten().sort().values) for gradient in self._expected.values()
        )

    def _right_with(self, place: Place, value: list[Tensor]) -> frozenset[str]:
        if all(are_equal(a, b) for a, b in zip(value, place.present, strict=True)):
            return frozenset()
        if not self._may_be_right(place, value):
            return frozenset()
        codes = place.code_with_value
        if codes is None:
            return frozenset()
        self._num_runs += 1
        with builtin(INSTEAD, one_by_one(value, place.present[0].dtype)):
            result = self._runs.run_edited(codes)
        return frozenset(q for q, gradient in self._expected.items() if are_equal(result.values.get(q), gradient))

    def _may_be_right(self, place: Place, value: list[Tensor]) -> bool:
        predicted = self.predicted.with_values(place, value)
        return predicted is None or any(
            name not in predicted or are_equal(predicted[name], self.predicted.elements(name, gradient))
            for name, gradient in self._expected.items()
        )


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
    words = expected.words if len(expected.value) == 1 else f"{expected.words}, at each step"
    return Correction((expected.place.change(words),), expected.quantities, makes_all_right=False)


def _may_stand_for(values: list[Tensor], others: list[Tensor]) -> bool:
    integer = others[0].dtype is torch.int64
    if integer and any(v.is_floating_point() and not torch.equal(v, v.round()) for v in values):  # no index
        return False
    return [(v.shape, v.is_complex()) for v in values] == [(v.shape, v.is_complex()) for v in others]


def _is_real_and_equal(value: Tensor, expected: Tensor) -> bool:
    return not value.is_complex() and are_equal(value, expected)
