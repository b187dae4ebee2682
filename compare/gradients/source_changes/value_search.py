"""Values that expressions of backward should have: terms that give them, and what is told where none does."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.correction import Correction
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import assigned_name
from compare.gradients.source_changes.expected_values import MAX_VALUES, ExpectedValue, ExpectedValues, as_correction
from compare.gradients.source_changes.fitting_steps import step_that_fits
from compare.gradients.source_changes.fitting_terms import Terms
from compare.gradients.source_changes.forward_runs import Functions
from compare.gradients.source_changes.ingredients import find_ingredients
from compare.gradients.source_changes.missing_derivatives import MissingDerivatives
from compare.gradients.source_changes.operands import Operands
from compare.gradients.source_changes.required_values import required_values

MAX_OPERANDS = 40  # whose values are fitted by one term
MAX_FOR_TWO, MAX_NAMES = 4, 5  # whole gradients and operands that are fitted by two
MAX_TERMS_OF_ALL = 30_000
MIN_ELEMENTS = 5  # of a value that is fitted early


class ValueSearch:
    """Search for the values of expressions of backward with which what is wrong is right.

    Args:
        candidates: the functions that may be edited.
        functions: those of the user that run, native's too.
        targets: what is wrong in the variant of the runs.
        probe: asks for further draws; without one, only the wrong gradients themselves are known.
    """

    def __init__(
        self,
        candidates: Candidates,
        functions: Functions,
        runs: EditedRuns,
        targets: Sequence[Mismatch],
        probe: Probe | None,
    ) -> None:
        self._functions, self._runs, self._targets, self._probe = functions, runs, targets, probe
        self._expected = ExpectedValues(candidates, functions, runs, targets, probe)
        self._of_native: list[ExpectedValue] = []

    def fitting_terms(self) -> Iterator[Candidate]:
        """Edits that give an expression the value that it should have: one term or factor, then a sum of two."""
        expected = self._expected
        self._of_native = list(islice(expected.of_native(), MAX_VALUES))
        terms: dict[Any, Terms] = {}
        whole = [*self._of_native, *expected.of_gradients(), *expected.of_factors()]
        operands = Operands(expected.places)
        of_whole = {_key(each): each for each in whole}
        of_parts = {_key(part): part for each in whole for part in operands.of(each)}
        required = required_values(expected.with_influence, expected.recorded, self._probe)
        of_parts |= {_key(each): each for each in required}
        whole = list(of_whole.values())
        parts = [part for key, part in of_parts.items() if key not in of_whole][:MAX_OPERANDS]
        names = [part for part in parts if isinstance(part.place.site.node, ast.Name)]
        names += [part for part in parts if assigned_name(part.place.site)]
        places = {id(each): expected.with_operands(each) for each in (*whole, *parts)}
        for each in sorted(
            (*whole, *parts), key=lambda each: bool(each.place.more)
        ):  # a change of one place is plainer
            present, numbers = each.place.present[each.step], each.place.function.called.numbers
            for edit in step_that_fits(each.place.site, present, each.value[each.step], numbers):
                yield each.place.with_edit(edit)
        for of_two, known in ((False, [*whole, *parts]), (True, [*whole[:MAX_FOR_TWO], *names[:MAX_NAMES]])):
            # Many terms are equal to a few numbers, and few are to many.
            for each in sorted(known, key=lambda each: each.value[each.step].numel() < MIN_ELEMENTS):
                place, value = places[id(each)], each.value[each.step]
                ingredients = find_ingredients(place.site, *place.others, len(each.value), each.step)
                key = (place.function, value.shape, tuple((i.text, float(i.value.sum())) for i in ingredients))
                if key not in terms:
                    if sum(map(len, terms.values())) > MAX_TERMS_OF_ALL:
                        continue
                    terms[key] = Terms(ingredients, value.shape, place.function.called.numbers)
                for edit in terms[key].edits(place.site, place.present[each.step], value, of_two=of_two):
                    yield place.with_edit(edit)

    def told(self) -> Correction | None:
        """A derivative of a step of forward that backward leaves out; otherwise the first value, in words."""
        if self._probe is None or self._probe.case.native is None:
            return None
        places, predicted = self._expected.with_influence, self._expected.predicted
        known = MissingDerivatives(self._functions, places, predicted, self._runs, self._targets, self._probe).find()
        if known is not None:
            return known
        return next((as_correction(each) for each in self._of_native if self._expected.is_confirmed(each)), None)


def _key(expected: ExpectedValue) -> tuple[int, int, str]:
    """The same for the same value at the same places."""
    value = expected.value[expected.step]
    return id(expected.place.site), len(expected.place.more), f"{float(value.abs().sum()):.6g}"
