"""The expression of backward that should have had a value of native's: with that value a gradient is right."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import CodeType

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.gradients.source_changes.candidates import Candidate, Candidates
from compare.gradients.source_changes.correction import Change, Correction, shown_text
from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.native_values import native_values
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin, record_values, value_instead

SECOND_DRAW = 1
TOLERANCE = 1e-6  # of the largest number
MAX_RUNS = 1500


def find_expected_value(
    candidates: Candidates, runs: EditedRuns, targets: Sequence[Mismatch], probe: Probe
) -> Correction | None:
    """The first expression of backward that, with a value of native's instead, makes wrong gradients right.

    Two draws of inputs have to agree. The gradients of the inputs themselves are not tried: that they are wrong is
    known.
    """
    first = targets[0]
    if probe.case.native is None or any(target.is_output for target in targets):
        return None
    values = native_values(probe.case.native, first.inputs, first.incoming(probe.seed))
    answers = [target.oracle for target in targets if target.oracle is not None]
    values = {words: v for words, v in values.items() if not any(_has_numbers_of(v, answer) for answer in answers)}
    num_runs = 0
    for function, site, present in _places(candidates, runs):
        for words, in_order in reversed(values.items()):  # the last of equal ones is the nearest
            if len(in_order) != len(present) or any(
                a.shape != b.shape for a, b in zip(in_order, present, strict=True)
            ):
                continue
            for is_reversed in (False, True)[: min(2, len(in_order))]:
                place = _Place(function, site, words, is_reversed)
                value = place.ordered(in_order)
                if num_runs > MAX_RUNS or all(_is_near(a, b) for a, b in zip(value, present, strict=True)):
                    continue
                num_runs += 1
                quantities = _right_with(place, value, runs, targets)
                if quantities and _is_confirmed(place, quantities, probe):
                    old, line = shown_text(site)
                    told = words if len(present) == 1 else f"{words}, at each step"
                    change = Change(function.code.co_filename, line, old, told, is_code=False)
                    return Correction((change,), quantities, makes_all_right=False)
    return None


@dataclass(frozen=True)
class _Place:
    """An expression and the value of native's that it is tried with.

    Attributes:
        words: name of the value.
        is_reversed: the expression runs several times, and has the values of a loop of native's from the last one on.
    """

    function: EditableFunction
    site: Site
    words: str
    is_reversed: bool

    def ordered(self, values: list[Tensor]) -> list[Tensor]:
        """The values in the order of the runs of the expression."""
        return values[::-1] if self.is_reversed else values

    @property
    def codes(self) -> dict[EditableFunction, CodeType] | None:
        """Code with the value in place of the expression."""
        candidate = Candidate(((self.function, self.site.edit(value_instead(), 1)),))
        with candidate.made():
            return candidate.compiled()


def _places(candidates: Candidates, runs: EditedRuns) -> Iterator[tuple[EditableFunction, Site, list[Tensor]]]:
    """Expressions of backward with their values, in the order of their lines, small ones first."""
    for function, sites in candidates.functions:
        if not function.called.in_backward:
            continue
        places = [site for site in sites if is_value(site, function.called)]
        present = record_values(function, places, runs.run)
        order = sorted(present, key=lambda n: (places[n].node.lineno, len(ast.unparse(places[n].node))))
        for n in order:
            yield function, places[n], present[n]


def _right_with(place: _Place, value: list[Tensor], runs: EditedRuns, targets: Sequence[Mismatch]) -> frozenset[str]:
    codes = place.codes
    if codes is None:
        return frozenset()
    tensors = place.function.called.tensors.values()
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float64)
    with builtin(INSTEAD, _one_by_one(value, dtype)):
        result = runs.run_edited(codes)
    return frozenset(
        target.quantity
        for target in targets
        if target.oracle is not None and _equals(result.values.get(target.quantity), target.oracle)
    )


def _is_confirmed(place: _Place, quantities: frozenset[str], probe: Probe) -> bool:
    """True if the same value makes the same quantities right in another draw."""
    inputs, incoming = probe.draw(SECOND_DRAW), probe.incoming(SECOND_DRAW)
    expected = None if inputs is None else probe.run_native(inputs, incoming)
    if inputs is None or expected is None or probe.case.native is None:
        return False
    value = native_values(probe.case.native, inputs, incoming).get(place.words)
    codes = place.codes
    if not value or codes is None:
        return False
    with builtin(INSTEAD, _one_by_one(place.ordered(value), probe.variant.dtype)), exchanged(codes):
        result = probe.run_ours(inputs, incoming)
    return all(_equals(result.values.get(name), expected.get(name)) for name in quantities)


def _one_by_one(values: list[Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """Each call returns the next value, after the last one the first."""
    again = cycle(values if values[0].is_complex() else [value.to(dtype) for value in values])
    return lambda: next(again)


def _equals(got: Tensor | None, expected: Tensor | None) -> bool:
    return got is not None and expected is not None and _is_near(as_real(got), as_real(expected))


def _is_near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return False
    a, b = a.double().cpu(), b.double().cpu()
    return bool(((a - b).abs() <= TOLERANCE * b.abs().max()).all())


def _has_numbers_of(values: list[Tensor], answer: Tensor) -> bool:
    """True if the elements are those of the wrong gradient itself, in whatever shape."""
    if len(values) != 1 or values[0].numel() != answer.numel():
        return not values
    return _is_near(as_real(values[0]).flatten().sort().values, answer.flatten().sort().values)
