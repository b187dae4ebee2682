"""Findings with the edit of the user's source that makes a wrong function right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.measure import REFUSED, Row
from compare.gradients.source_changes.search import Correction, find_corrections

# Kinds of findings about calls that depend on each other: an edited call would leave something behind, too.
OF_SEVERAL_CALLS = ("depends on earlier calls", "not repeatable")
VAGUE = ("unknown", "few elements")
KIND = "one change of the source"


def add_corrections(
    findings: Sequence[Finding], runner: CaseRunner, rows: Sequence[Row], side_effects: Mapping[str, str]
) -> list[Finding]:
    """Return ``findings``; where one edit of the source makes something right, they say which.

    A finding that names no mistake becomes one of kind "one change of the source".
    """
    if not runner.mismatches or side_effects or any(f.kind in OF_SEVERAL_CALLS for f in findings):
        return list(findings)
    variants = list(dict.fromkeys(row.variant for row in rows if row.status != REFUSED))
    corrections = find_corrections(runner, runner.mismatches, variants)
    told: set[frozenset[str]] = set()
    result = []
    for finding in sorted(findings, key=lambda f: f.kind not in VAGUE):
        own = [c for c in corrections if any(_is_about(finding, quantity) for quantity in c.quantities)]
        if not own:
            result.append(finding)
            continue
        correction = _simplest(own)
        if correction.quantities in told:
            if finding.kind not in VAGUE:
                result.append(finding)
            continue
        told.add(correction.quantities)
        result.append(_with_correction(finding, correction, own))
    order = {id(f): n for n, f in enumerate(findings)}
    del order
    return result


def _is_about(finding: Finding, quantity: str) -> bool:
    return quantity in finding.quantity.replace(" and ", ", ").split(", ")


def _simplest(corrections: Sequence[Correction]) -> Correction:
    return min(corrections, key=lambda c: (-len(c.quantities), len(c.new)))


def _with_correction(finding: Finding, correction: Correction, others: Sequence[Correction]) -> Finding:
    statement = describe(correction, others)
    what = "all comparisons are" if correction.makes_all_right else "it is"
    proof = f"with this change {what} right"
    if finding.kind not in VAGUE:
        return replace(finding, evidence="; ".join(filter(None, (finding.evidence, f"{statement}: {proof}"))))
    quantity = join_words(sorted(correction.quantities))
    evidence = "; ".join(filter(None, (f"{proof}", finding.statement, finding.evidence)))
    return Finding(KIND, quantity, statement, evidence)


def describe(correction: Correction, others: Sequence[Correction] = ()) -> str:
    """The edit in words: "in line 3 of functions.py, `g * y` should be `g * (1 - y)`"."""
    where = f"in line {correction.line} of {Path(correction.file).name}, `{correction.old}`"
    if not correction.new:
        return f"{where} should be left out"
    alternatives = [c.new for c in others if (c.line, c.old) == (correction.line, correction.old) and c.new]
    second = next((new for new in alternatives if new != correction.new), "")
    return f"{where} should be `{correction.new}`" + (f" or `{second}`" if second else "")
