"""Findings with the edit of the user's source that makes a wrong function right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compare.case_errors import describe_exception
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.native_paths import MAX_CALLS as MAX_NATIVE_CALLS
from compare.gradients.diagnosis.tape_findings import MAX_COST as MAX_STEPS
from compare.gradients.measure import REFUSED, Row
from compare.gradients.source_changes.correction import Correction, describe
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.search import MAX_CALLS, MAX_CALLS_IF_NAMED, search
from compare.gradients.source_changes.search_result import not_tried

KIND, KIND_OF_VALUES = "change of the source", "wrong intermediate value"
# Findings that tell where a gradient is wrong rather than why: a longer search is worth its time.
VAGUE = (
    "unknown",
    "few elements",
    "factor by element",
    "only at some indices",
    "only at borders",
    "only for some values",
    "missing term",
)
FAILED = "The search for a change of the source ended with an error of its own ({}); please report it."
FOLLOWS = "is wrong as well"  # the statement about a gradient that another one may explain, which is told, too
# Calls depend on each other: those of an edited function would leave something behind, too.
OF_SEVERAL_CALLS = ("depends on earlier calls", "not repeatable")


def add_corrections(
    findings: Sequence[Finding],
    runner: CaseRunner,
    rows: Sequence[Row],
    side_effects: Mapping[str, str],
    native: NativeOracle | None = None,
    kept: KeptValues | None = None,
) -> tuple[list[Finding], str]:
    """Return ``findings``; where one edit of the source makes a wrong quantity right, the finding says which.

    Without any such edit, the second result is a sentence on what was not tried, and why; "" if everything was.

    A finding without a name for the mistake becomes one of kind "change of the source". Other findings of that
    sort whose quantities the same edit makes right are left out.
    """
    if not runner.mismatches:
        return list(findings), ""
    if side_effects or any(f.kind in OF_SEVERAL_CALLS for f in findings):
        changes = [kind for kind in side_effects.values() if kind not in OF_SEVERAL_CALLS]
        reason = f"the function {changes[0]}" if changes else "its results depend on earlier calls"
        return list(findings), not_tried(reason)
    variants = list(dict.fromkeys(row.variant for row in rows if row.status != REFUSED))
    is_named = not any(f.kind in VAGUE for f in findings)
    max_calls = MAX_CALLS_IF_NAMED if is_named else MAX_CALLS
    if native is not None:  # two thirds as long after the longest diagnosis
        max_calls = int(max_calls * (1 - _work(native) / 6))
    probe = None if native is None else native.probe(runner.mismatches[0].variant)
    try:
        search_result = search(runner, runner.mismatches, variants, max_calls, probe, kept)
    except Exception as error:  # the findings above hold whatever the search met in the user's source
        return list(findings), FAILED.format(describe_exception(error))
    corrections = search_result.corrections
    if is_named:  # what makes a part of the elements right is no news then
        corrections = [each for each in corrections if not each.elements]
    result: list[Finding] = []
    told: set[Correction] = set()
    for finding in findings:
        own = _corrections_of(finding, corrections)
        if not own or (own[0] in told and not _lacks_a_name(finding)):
            result.append(finding)
        elif own[0] not in told:
            told.update(own)
            result.append(_with_corrections(finding, own, corrections))
    further = [each for each in corrections if each.is_further and each not in told]
    result += [Finding(KIND, each.names, describe(each), each.proof) for each in further]
    return result, search_result.note


def _work(native: NativeOracle) -> float:
    """Work of the diagnosis so far: the share of its limit on runs of changed native, plus that on tapes."""
    calls = sum(probe.native_calls for probe in native.probes.values())
    steps = sum(probe.tape_cost for probe in native.probes.values())
    return min(1.0, calls / MAX_NATIVE_CALLS) + min(1.0, steps / MAX_STEPS)


def _corrections_of(finding: Finding, corrections: Sequence[Correction]) -> list[Correction]:
    """The simplest correction for the finding's quantities, and one for each that it leaves wrong."""
    quantities = set(finding.quantity.replace(" and ", ", ").split(", "))
    own: list[Correction] = []
    for each in sorted(corrections, key=lambda c: (-len(c.quantities), c.size)):
        told = {quantity for correction in own for quantity in correction.quantities}
        if (quantities - told) & each.quantities or ("backward" in quantities and not own):
            own.append(each)
    return own


def _lacks_a_name(finding: Finding) -> bool:
    """True for a finding that tells less than a correction: of the only element it tells that it is wrong."""
    return finding.kind == "unknown" or finding.statement.startswith("1 of 1 elements")


def _with_corrections(finding: Finding, own: Sequence[Correction], others: Sequence[Correction]) -> Finding:
    if not _lacks_a_name(finding):
        words = "\n  ".join(f"{describe(each, others)}: {each.proof}" for each in own)
        return replace(finding, correction=words)
    first = own[0]
    known = () if finding.statement.startswith(FOLLOWS) else (finding.statement, finding.evidence)
    evidence = "; ".join(text for text in (first.proof, *known) if text)
    more = "\n  ".join(f"{describe(each, others)}: {each.proof}" for each in own[1:])
    kind = KIND if all(change.is_code for change in first.changes) else KIND_OF_VALUES
    return Finding(kind, first.names, describe(first, others), evidence, more)
