"""The expression of backward that should have had a value of native's: with that value a gradient is right."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

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
        for words, value in values.items():
            if value.shape != present.shape or value.is_complex() != present.is_complex():
                continue
            if _is_near(value, present) or num_runs > MAX_RUNS:
                continue
            num_runs += 1
            quantities = _right_with(function, site, value, runs, targets)
            if quantities and _is_confirmed(function, site, words, quantities, probe):
                old, line = shown_text(site)
                change = Change(function.code.co_filename, line, old, words, is_code=False)
                return Correction((change,), quantities, makes_all_right=False)
    return None


def _places(candidates: Candidates, runs: EditedRuns) -> Iterator[tuple[EditableFunction, Site, Tensor]]:
    """Expressions of backward with their values, in the order of their lines, small ones first."""
    for function, sites in candidates.functions:
        if not function.called.in_backward:
            continue
        places = [site for site in sites if is_value(site, function.called)]
        present = record_values(function, places, runs.run)
        order = sorted(present, key=lambda n: (places[n].node.lineno, len(ast.unparse(places[n].node))))
        for n in order:
            yield function, places[n], present[n]


def _right_with(
    function: EditableFunction, site: Site, value: Tensor, runs: EditedRuns, targets: Sequence[Mismatch]
) -> frozenset[str]:
    candidate = Candidate(((function, site.edit(value_instead(), 1)),))
    with candidate.made():
        codes = candidate.compiled()
    if codes is None:
        return frozenset()
    dtype = next((t.dtype for t in function.called.tensors.values() if t.is_floating_point()), torch.float64)
    with builtin(INSTEAD, value.to(dtype) if not value.is_complex() else value):
        result = runs.run_edited(codes)
    return frozenset(
        target.quantity
        for target in targets
        if target.oracle is not None and _equals(result.values.get(target.quantity), target.oracle)
    )


def _is_confirmed(
    function: EditableFunction, site: Site, words: str, quantities: frozenset[str], probe: Probe
) -> bool:
    """True if the same value makes the same quantities right in another draw."""
    inputs, incoming = probe.draw(SECOND_DRAW), probe.incoming(SECOND_DRAW)
    expected = None if inputs is None else probe.run_native(inputs, incoming)
    if inputs is None or expected is None or probe.case.native is None:
        return False
    value = native_values(probe.case.native, inputs, incoming).get(words)
    if value is None:
        return False
    candidate = Candidate(((function, site.edit(value_instead(), 1)),))
    with candidate.made():
        codes = candidate.compiled()
    if codes is None:
        return False
    with builtin(INSTEAD, value), exchanged(codes):
        result = probe.run_ours(inputs, incoming)
    return all(_equals(result.values.get(name), expected.get(name)) for name in quantities)


def _equals(got: Tensor | None, expected: Tensor | None) -> bool:
    return got is not None and expected is not None and _is_near(as_real(got), as_real(expected))


def _is_near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return False
    a, b = a.double().cpu(), b.double().cpu()
    return bool(((a - b).abs() <= TOLERANCE * b.abs().max()).all())


def _has_numbers_of(value: Tensor, answer: Tensor) -> bool:
    """True if the elements are those of the wrong gradient itself, in whatever shape."""
    return value.numel() == answer.numel() and _is_near(
        as_real(value).flatten().sort().values, answer.flatten().sort().values
    )
