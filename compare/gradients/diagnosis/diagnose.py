"""The diagnosis: the kind of mistake in every wrong output and gradient, and the evidence for it.

First, the variants in which a quantity is wrong are compared. If it is correct in float64 with contiguous tensors,
the dtype or layout in which it is wrong is the finding. Otherwise one variant's tensors are examined. Patterns are
tried from the special to the general: the whole tensor transformed, scaled or replaced; the locations of wrong
elements; the terms of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.one_cause import BackwardGraph, share_causes, tell_consequence
from compare.gradients.diagnosis.patterns import first_pattern
from compare.gradients.diagnosis.variant_findings import (
    dtype_finding,
    has_float32_errors,
    layout_finding,
    whole_numbers_finding,
)
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.measure import REFUSED, WRONG, Row
from compare.gradients.run_variant import OUTPUT, gradient_name
from compare.gradients.variants import SECOND_DRAW, Variant

MAX_SUSPECTS = 4  # operations in one sentence


def diagnose(
    mismatches: Sequence[Mismatch],
    rows: Sequence[Row],
    side_effects: dict[str, str],
    native: NativeOracle,
) -> list[Finding]:
    """Return the side effects, then one finding for each wrong quantity, outputs before gradients.

    Args:
        mismatches: every wrong quantity in every variant where it is wrong.
        rows: the rows of all quantities in all variants.
        side_effects: kind of finding for each modified argument and each result that is not repeatable.
    """
    quantities = list(dict.fromkeys(mismatch.quantity for mismatch in mismatches))
    several = len([q for q in quantities if not q.startswith(OUTPUT)]) > 1
    right = [gradient_name(name) for name in native.right_inputs]
    graph = BackwardGraph(native.probe(mismatches[0].variant)) if mismatches and (several or right) else None
    findings: list[Finding] = []
    consequences: list[str] = []
    for quantity in quantities if graph is None else graph.in_order(quantities):
        unnamed = [f.quantity for f in findings if f.kind == "unknown" and f.quantity not in consequences]
        earlier = next((q for q in unnamed if graph is not None and graph.is_behind(quantity, q)), None)
        own = [m for m in mismatches if m.quantity == quantity]
        if earlier is not None and not any(m.message for m in own):
            consequences.append(quantity)
            findings.append(tell_consequence(quantity, earlier))
        else:
            finding = _diagnose_quantity(own, rows, native)
            if graph is not None and finding.kind == "unknown":
                finding = _with_suspects(finding, graph.suspects(quantity, right), right)
            findings.append(finding)
    findings.sort(key=lambda f: (not f.quantity.startswith(OUTPUT), quantities.index(f.quantity)))
    findings = _without_consequences(findings)
    for variant, probe in native.probes.items():
        wrong = {m.quantity: m for m in mismatches if m.variant == variant and not m.message and not m.is_output}
        if probe.explanations:
            findings = share_causes(findings, wrong, probe)
    if any(kind.startswith("changes") for kind in side_effects.values()):
        # An in-place change gives other values where elements share memory; that is no second mistake.
        findings = [f for f in findings if f.kind not in ("only in one layout", "only in one dtype")]
    findings = [f for f in findings if side_effects.get(f.quantity) != "not repeatable"]
    for name, kind in side_effects.items():
        statement = {
            "changes its input": f"the function modifies its argument {name} in place",
            "changes the incoming gradient": f"backward modifies {name} in place",
            "not repeatable": "a second call with the same arguments returns different values",
        }[kind]
        findings.insert(0, Finding(kind, name.removeprefix("the "), statement))
    return findings


def _with_suspects(finding: Finding, suspects: list[str], right: list[str]) -> Finding:
    """The finding with the operations of native in whose derivatives the mistake may be, if they are few."""
    if not 0 < len(suspects) <= MAX_SUSPECTS:
        return finding
    words = f"the mistake is in the derivative of {join_words(suspects).replace(' and ', ' or ')}"
    names = join_words([name.removeprefix("gradient of ") for name in right])
    words += f", since the gradient of {names} is right" if len(right) == 1 else f", since those of {names} are right"
    return replace(finding, evidence=f"{finding.evidence}; {words}")


def _without_consequences(findings: list[Finding]) -> list[Finding]:
    """Leave out gradients that are wrong by the same factor as an output: that is one mistake."""
    outputs = {f.statement for f in findings if f.quantity.startswith(OUTPUT) and "times the expected" in f.statement}
    consequences: dict[str, list[str]] = {}
    for f in findings:
        statement = f.statement.replace("gradient", OUTPUT)
        if f.kind == "constant factor" and statement in outputs:
            consequences.setdefault(statement, []).append(f.quantity)
    told = {quantity for quantities in consequences.values() for quantity in quantities}
    return [
        replace(f, evidence=f"{f.evidence}; so is the {join_words(consequences[f.statement])}")
        if f.statement in consequences
        else f
        for f in findings
        if f.quantity not in told
    ]


def _diagnose_quantity(mismatches: list[Mismatch], rows: Sequence[Row], native: NativeOracle) -> Finding:
    quantity = mismatches[0].quantity
    compared = [row for row in rows if row.status != REFUSED]
    tested_dtypes = {row.variant.dtype for row in compared if row.quantity == quantity or quantity == "backward"}
    wrong = {row.variant for row in rows if row.status == WRONG and row.quantity == quantity}
    wrong_dtypes = {v.dtype for v in wrong}
    widest = max(tested_dtypes, key=lambda dtype: -torch.finfo(dtype).eps, default=torch.float64)
    plain = next((m for m in mismatches if m.variant == Variant(widest, device=m.variant.device)), None)
    if (
        plain is not None
        and native.function is not None  # without it, float64 alone is compared with finite differences
        and wrong_dtypes == {torch.float64}
        and len(tested_dtypes) > 1
        and has_float32_errors(plain)
    ):
        statement = "is wrong only in float64, where its errors are those of float32"
        return Finding("only in one dtype", quantity, statement, locations.worst_example(plain))
    if plain is not None:
        finding = first_pattern(plain, native)
        right = [str(dtype).removeprefix("torch.") for dtype in tested_dtypes - wrong_dtypes]
        if finding.kind == "raises" and right:
            wrong_names = [str(dtype).removeprefix("torch.") for dtype in tested_dtypes & wrong_dtypes]
            where = f"in {join_words(sorted(wrong_names))}, and not in {join_words(sorted(right))}"
            return replace(finding, statement=f"{finding.statement} {where}")
        return finding
    mismatch = mismatches[0]
    if torch.float64 not in wrong_dtypes and torch.float64 in tested_dtypes:
        return dtype_finding(mismatch, wrong, rows, native)
    in_widest = [v for v in wrong if v.dtype == mismatch.variant.dtype]  # rounding makes zeros and ties in the others
    if all(v.data == "whole numbers" for v in in_widest):
        return whole_numbers_finding(mismatch, native)
    if all(v.layout == v.gradient_layout == "contiguous" for v in wrong):
        return first_pattern(next(m for m in mismatches if m.variant.data == SECOND_DRAW), native)
    return layout_finding(mismatch, wrong, native)
