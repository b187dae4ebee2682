"""Mistakes that one call with all gradients does not show: they need other incoming gradients, fewer requested
gradients, or several calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from compare.gradients import linearity, repeated_calls, requested_gradients
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.measure import REFUSED, WRONG, Row
from compare.gradients.run_variant import run_variant
from compare.gradients.variants import SECOND_DRAW, Variant, call_dtypes


def add_call_mistakes(
    findings: Sequence[Finding],
    runner: CaseRunner,
    dtypes: tuple[torch.dtype, ...],
    rows: Sequence[Row],
    side_effects: Mapping[str, str],
) -> list[Finding]:
    """Return ``findings`` with those of other calls, which replace others about the same quantities.

    A quantity with such a finding is right in a contiguous call by itself. What else is wrong about it, such as a
    value that an earlier call in another dtype left behind, has the same cause.
    """
    others = _find_call_mistakes(runner, dtypes, rows, side_effects)
    replaced = {finding.quantity for finding in others}
    kept = [f for f in findings if f.quantity not in replaced or f.kind == "not repeatable"]
    return [*others, *(linearity.find_nonlinear_mistake(runner, f) if f.kind == "unknown" else f for f in kept)]


def _find_call_mistakes(
    runner: CaseRunner, dtypes: tuple[torch.dtype, ...], rows: Sequence[Row], side_effects: Mapping[str, str]
) -> list[Finding]:
    """Return one finding for each quantity that is right in a contiguous call by itself, and wrong otherwise."""
    findings: dict[str, Finding] = {}
    if any(kind.startswith("changes") for kind in side_effects.values()):
        return []  # a function that writes into its arguments without declaring it spoils every later call
    known = {row.quantity for row in rows if row.variant == runner.plain and row.status == WRONG}
    for dtype in call_dtypes(dtypes):
        first = Variant(dtype, device=runner.plain.device)
        second = Variant(dtype, data=SECOND_DRAW, device=runner.plain.device)
        right = {row.quantity: row for row in rows if row.variant == first and row.status not in (WRONG, REFUSED)}
        right = {name: row for name, row in right.items() if name not in known}
        if not right or any(row.quantity == "backward" for row in rows if row.variant == first):
            continue
        repeatable = {name for name in right if side_effects.get(name) != "not repeatable"}
        results = list(requested_gradients.find_dependence_on_requested_gradients(runner, first, repeatable))
        gradients = {
            name: right[name].tolerance
            for name in repeatable
            if name.startswith("gradient") and not math.isnan(right[name].tolerance)
        }
        results += linearity.find_nonlinearity(runner, first, gradients)
        if not any(row.variant == second and row.status == REFUSED for row in rows):
            ours = run_variant(runner.case.ours, runner.oracles(first).inputs, first, runner.seed)
            results += repeated_calls.find_dependence_on_earlier_calls(
                runner, first, second, repeatable, in_place=ours.in_place
            )
        for finding in results:
            findings.setdefault(finding.quantity, finding)
    return list(findings.values())
