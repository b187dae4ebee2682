"""The first pattern that fits a wrong output or gradient in one variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import torch

from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.conjugates import find_conjugated
from compare.gradients.diagnosis.contributions import (
    find_missing_contributions,
    find_missing_output,
    find_overwritten_contributions,
)
from compare.gradients.diagnosis.element_factors import find_own_factors
from compare.gradients.diagnosis.exactness import find_narrower_dtype
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.missing_terms import find_missing_term
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.native_paths import NativePaths
from compare.gradients.diagnosis.one_cause import find_shared_cause
from compare.gradients.diagnosis.only_where import find_condition
from compare.gradients.diagnosis.path_findings import (
    find_late_path_findings,
    find_path_findings,
    find_scaled_path_findings,
)
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.second_backward import find_other_gradient_of_second_backward
from compare.gradients.diagnosis.second_question import (
    ask_again,
    ask_for_factors,
    ask_jacobian,
    confirmed,
    is_right_if_symmetric,
    with_examples,
)
from compare.gradients.diagnosis.special_values import find_special_values
from compare.gradients.diagnosis.tape_findings import find_tape_findings
from compare.gradients.diagnosis.whole_tensor import (
    find_factor,
    find_shifted,
    find_symmetric_part,
    find_whole_tensor_patterns,
)
from compare.gradients.diagnosis.without_numbers import finding_without_numbers

# Kinds of findings that tell more than the places of wrong elements.
CHANGES = ("missing term", "step left out", "another operand", "not transposed", "shifted", "factor of one term")

PLACES = ("unknown", "only at some indices")  # kinds of conditions on indices alone


def first_pattern(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Finding of the first pattern that fits a mismatch."""
    if mismatch.message:
        return finding_without_numbers(mismatch, native)
    finding = next(_patterns(mismatch, native), None)
    if finding is None:
        n, total = int(mismatch.wrong.sum()), mismatch.wrong.numel()
        cosine = torch.nn.functional.cosine_similarity(mismatch.ours.flatten(), mismatch.oracle.flatten(), 0)
        statement = f"{n} of {total} elements are wrong{locations.wrong_slices(mismatch)}"
        evidence = f"cosine similarity {float(cosine):.6f}; {locations.worst_example(mismatch)}"
        if native.is_output_wrong and not mismatch.is_output:
            evidence += "; the output is wrong as well, which may be the cause"
        finding = Finding("unknown", mismatch.quantity, statement, evidence)
    if mismatch.is_output:
        return Finding("wrong output", mismatch.quantity, finding.statement, finding.evidence)
    caps = [j.cap for matrices in native.probe(mismatch.variant).jacobians.values() for j in matrices if j.cap]
    if finding.kind == "unknown" and caps and caps[0] not in finding.evidence:
        finding = replace(finding, evidence=f"{finding.evidence}; {caps[0]}")
    return finding


def _patterns(mismatch: Mismatch, native: NativeOracle) -> Iterator[Finding]:
    """Special patterns before general ones, and those that cost a few native runs before those that cost hundreds."""
    rerun_native, seed = native.rerunner(mismatch.variant), native.seed
    yield from locations.find_zero(mismatch) if not mismatch.ours.any() else ()
    yield from locations.find_nonfinite(mismatch)
    if mismatch.has_complex_numbers:  # the other patterns are about real numbers
        yield from find_factor(mismatch)
        yield from find_conjugated(mismatch, rerun_native, seed)
        if native.function is not None and not mismatch.is_output and not native.is_output_wrong:
            yield from _changed_natives(mismatch, native.probe(mismatch.variant))
        return
    if mismatch.is_output:
        yield from find_whole_tensor_patterns(mismatch, rerun_native, seed)
        yield from _locations(mismatch)
        yield from locations.find_zero(mismatch)
        return
    probe = native.probe(mismatch.variant)
    yield from find_other_gradient_of_second_backward(mismatch, probe)
    yield from find_narrower_dtype(mismatch, probe)
    if native.function is not None and not native.is_output_wrong:
        yield from with_examples(find_shared_cause(mismatch, probe), mismatch)
    rerun_on = lambda m: lambda gradients, inputs=None: rerun_native(gradients, inputs or m.inputs)  # noqa: E731
    equal_to_right = []  # the gradient of another input, which is right itself, may be a consequence
    for finding in confirmed(lambda m: find_whole_tensor_patterns(m, rerun_on(m), seed, probe), mismatch, probe):
        other, part, _ = finding.statement.removeprefix("equals the gradient of ").partition(" in the ")
        if finding.kind == "swapped" and other in probe.right_inputs:
            equal_to_right += [] if part else [finding]  # parts are exchanged only where both are wrong
        elif finding.kind == "passes the incoming gradient through":  # where that is right, nothing is to be changed
            where = next(find_condition(mismatch, probe), None)
            if where is not None and where.kind in PLACES:  # a step may be missing there alone
                yield from (f for f in _searches(mismatch, native, where, equal_to_right) if f.kind in CHANGES)
            yield (
                finding if where is None else replace(finding, statement=f"{finding.statement}; it {where.statement}")
            )
        else:
            yield finding
    located = next(_locations(mismatch), None)
    condition = next(find_condition(mismatch, probe), None)
    # A condition on values tells more than a place, and a place that is confirmed more than a coincidence.
    if located is not None and located.kind in ("only at borders", "few elements") and not native.is_output_wrong:
        # A place is no name.
        yield from (f for f in _searches(mismatch, native, condition, equal_to_right) if f.kind in CHANGES)
    if located is not None and (condition is None or located.kind in ("only at borders", "only at bounds")):
        yield located
    if condition is not None and ("; it is " in condition.statement or condition.kind == "step left out"):
        yield condition
    if not native.is_output_wrong:  # otherwise that may be why the gradient is wrong, and a search costs seconds
        yield from _searches(mismatch, native, condition, equal_to_right)
    yield from confirmed(lambda m: find_missing_term(m, seed), mismatch, probe)
    yield from [condition] if condition is not None and condition.kind != "unknown" else []
    yield from find_own_factors(mismatch, probe)
    yield from [condition] if condition is not None else []
    yield from locations.find_zero(mismatch)
    yield from locations.find_few_elements(mismatch)


def _searches(
    mismatch: Mismatch, native: NativeOracle, condition: Finding | None, equal_to_right: list[Finding]
) -> Iterator[Finding]:
    """Patterns for which ours or native runs many times."""
    rerun_native, seed, probe = native.rerunner(mismatch.variant), native.seed, native.probe(mismatch.variant)
    rerun_on = lambda m: lambda gradients, inputs=None: rerun_native(gradients, inputs or m.inputs)  # noqa: E731
    symmetric = "; it is right for a symmetric incoming gradient" if is_right_if_symmetric(mismatch, probe) else ""
    search = NativePaths(mismatch, probe) if native.function is not None else None
    for finding in chain(
        confirmed(lambda m: find_missing_output(m, rerun_on(m), seed), mismatch, probe),
        ask_again(mismatch, probe, search),
        confirmed(find_shifted, mismatch, probe),
        equal_to_right,
        _contributions(mismatch, native),
        with_examples(find_tape_findings(mismatch, probe), mismatch) if search is not None else (),
        ask_for_factors(mismatch, probe),
        with_examples(find_scaled_path_findings(search), mismatch) if search is not None else (),
        with_examples(find_late_path_findings(search), mismatch) if search is not None else (),
        confirmed(find_symmetric_part, mismatch, probe),
        ask_jacobian(mismatch, probe, of_pairs=True),
        ask_jacobian(mismatch, probe, of_pairs=False),
        find_overwritten_contributions(mismatch, rerun_native, seed) if native.function is not None else (),
    ):
        where = f"; it {condition.statement}" if condition is not None else ""
        yield replace(
            finding, statement=finding.statement + symmetric, evidence=(finding.evidence + where).removeprefix("; ")
        )


def _changed_natives(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Changes of native alone."""
    search = NativePaths(mismatch, probe)
    for find in (find_shared_cause, lambda *_: find_path_findings(search), find_tape_findings):
        yield from with_examples(find(mismatch, probe), mismatch)
    yield from with_examples(find_scaled_path_findings(search), mismatch)


def _contributions(mismatch: Mismatch, native: NativeOracle) -> Iterator[Finding]:
    """Contributions to the sum that are missing, each of which costs a run of native."""
    rerun_native, seed, probe = native.rerunner(mismatch.variant), native.seed, native.probe(mismatch.variant)
    if native.function is None:
        return
    rerun_on = lambda m: lambda gradients, inputs=None: rerun_native(gradients, inputs or m.inputs)  # noqa: E731
    yield from confirmed(lambda m: find_missing_contributions(m, rerun_on(m), seed), mismatch, probe)


def _locations(mismatch: Mismatch) -> Iterator[Finding]:
    yield from find_special_values(mismatch)
    if mismatch.oracle.numel() > 3:
        yield from locations.find_few_elements(mismatch, most=3)  # before borders: so few elements show no border
    yield from locations.find_borders(mismatch)
    if mismatch.oracle.numel() > 3:
        yield from locations.find_few_elements(mismatch)
