"""Findings with the edit of the user's source that makes a wrong function right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.measure import REFUSED, Row
from compare.gradients.source_changes.search import MAX_CALLS, MAX_CALLS_IF_NAMED, Correction, find_corrections

KIND = "one change of the source"
# Calls depend on each other: those of an edited function would leave something behind, too.
OF_SEVERAL_CALLS = ("depends on earlier calls", "not repeatable")


def add_corrections(
    findings: Sequence[Finding], runner: CaseRunner, rows: Sequence[Row], side_effects: Mapping[str, str]
) -> list[Finding]:
    """Return ``findings``; where one edit of the source makes a wrong quantity right, the finding says which.

    A finding without a name for the mistake becomes one of kind "one change of the source". Other findings of that
    sort whose quantities the same edit makes right are left out.
    """
    if not runner.mismatches or side_effects or any(f.kind in OF_SEVERAL_CALLS for f in findings):
        return list(findings)
    variants = list(dict.fromkeys(row.variant for row in rows if row.status != REFUSED))
    max_calls = MAX_CALLS if any(f.kind == "unknown" for f in findings) else MAX_CALLS_IF_NAMED
    corrections = find_corrections(runner, runner.mismatches, variants, max_calls)
    result: list[Finding] = []
    told: set[Correction] = set()
    for finding in findings:
        correction = _correction_of(finding, corrections)
        if correction is None or (correction in told and finding.kind != "unknown"):
            result.append(finding)
        elif correction not in told:
            told.add(correction)
            result.append(_with_correction(finding, correction, describe(correction, corrections)))
    return result


def _correction_of(finding: Finding, corrections: Sequence[Correction]) -> Correction | None:
    """The simplest of the corrections that make the finding's quantities right; None without one."""
    quantities = set(finding.quantity.replace(" and ", ", ").split(", "))
    own = [c for c in corrections if quantities & c.quantities or "backward" in quantities]
    return min(own, key=lambda c: (-len(c.quantities), len(c.new)), default=None)


def _with_correction(finding: Finding, correction: Correction, words: str) -> Finding:
    what = "all comparisons are" if correction.makes_all_right else f"{_names(correction)} is"
    proof = f"with this change {what} right"
    if finding.kind != "unknown":
        return replace(finding, correction=f"{words}: {proof}")
    evidence = "; ".join(text for text in (proof, finding.statement, finding.evidence) if text)
    return Finding(KIND, _names(correction), words, evidence)


def _names(correction: Correction) -> str:
    return join_words(sorted(correction.quantities))


def describe(correction: Correction, others: Sequence[Correction] = ()) -> str:
    """The edit in words: "in line 3 of functions.py, `g * y` should be `g * (1 - y)`".

    Args:
        others: further edits that make the same right. Where the number 2 does, and a size that is 2, both are told.
    """
    where = f"in line {correction.line} of {Path(correction.file).name}, `{correction.old}`"
    if not correction.new:
        return f"{where} should be left out"
    place = correction.line, correction.old
    at_place = [c.new for c in others if (c.line, c.old) == place]
    sizes = [new for new in at_place if new.count(".shape") != correction.new.count(".shape")]
    return f"{where} should be `{correction.new}`" + (f" or `{sizes[0]}`" if sizes else "")
