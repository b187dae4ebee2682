"""Findings about a quantity that is right in float64 with contiguous tensors of random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.only_where import find_condition
from compare.gradients.diagnosis.patterns import first_pattern
from compare.gradients.diagnosis.special_claims import check_claim
from compare.gradients.diagnosis.special_values import find_special_values
from compare.gradients.diagnosis.whole_tensor import find_factor
from compare.gradients.measure import Row
from compare.gradients.variants import Variant


def has_float32_errors(mismatch: Mismatch) -> bool:
    """Return True if most elements are wrong, and each by a few rounding errors of float32."""
    if mismatch.message or not mismatch.ours.isfinite().all():
        return False
    error, norm = float((mismatch.ours - mismatch.oracle).norm()), float(mismatch.oracle.norm())
    wrong_fraction = float(mismatch.wrong.double().mean())
    return wrong_fraction > 0.25 and error < 16 * torch.finfo(torch.float32).eps * norm


def dtype_finding(mismatch: Mismatch, wrong: set[Variant], rows: Sequence[Row], native: NativeOracle) -> Finding:
    names = sorted({str(v.dtype).removeprefix("torch.") for v in wrong})
    if not mismatch.message:
        is_real_and_finite = not mismatch.has_complex_numbers and bool(mismatch.ours.isfinite().all())
        for finding in find_special_values(mismatch) if is_real_and_finite else ():
            if finding.kind == "only at bounds":
                return replace(finding, evidence=f"in {mismatch.variant}: {finding.evidence}")
    row = next(r for r in rows if r.quantity == mismatch.quantity and r.variant == mismatch.variant)
    statement = f"is wrong only in {' and '.join(names)}"
    if mismatch.message:
        return Finding("only in one dtype", mismatch.quantity, statement, mismatch.message)
    evidence = f"in {mismatch.variant}: {locations.worst_example(mismatch)}"
    for nonfinite in locations.find_nonfinite(mismatch):
        largest = torch.finfo(mismatch.variant.dtype).max
        said = f"{statement}, where it {nonfinite.statement}"
        evidence += f"; numbers beyond {largest:.6g} are infinite there, and inf / inf and inf - inf are NaN"
        for condition in find_condition(mismatch, native.probe(mismatch.variant)):
            evidence += f"; it {condition.statement}"
        return Finding("only in one dtype", mismatch.quantity, said, evidence)
    if not mismatch.has_complex_numbers and not mismatch.equals(mismatch.oracle):
        for finding in find_factor(mismatch):  # where a factor of 1 fits nearly as well, another one tells nothing
            evidence += f"; it {finding.statement}"
    if row.tolerance_used < math.inf:
        evidence += f"; the error is {row.tolerance_used:.3g} times the tolerance"
    if names != ["float32"] and row.tolerance_used < 50 and not row.by_norm:
        evidence += "; if a ReLU or a maximum follows a sum inside the function, set kinks=True in the case"
    return Finding("only in one dtype", mismatch.quantity, statement, evidence)


def layout_finding(mismatch: Mismatch, wrong: set[Variant], native: NativeOracle) -> Finding:
    layouts = []
    for v in wrong:
        if v.layout != "contiguous":
            layouts.append(f"{v.layout} inputs")
        if v.gradient_layout != "contiguous":
            layouts.append(f"{v.gradient_layout} incoming gradients")
    statement = f"is wrong only with {' and '.join(dict.fromkeys(sorted(layouts)))}"
    if mismatch.message:
        return Finding("only in one layout", mismatch.quantity, statement, mismatch.message)
    pattern = first_pattern(mismatch, native)
    evidence = f"in {mismatch.variant}: {pattern.statement}" + (f"; {pattern.evidence}" if pattern.evidence else "")
    return Finding("only in one layout", mismatch.quantity, statement, evidence)


def whole_numbers_finding(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Correct for random inputs, wrong for whole numbers: the cause is zeros or ties, in an input or inside."""
    if mismatch.message:
        return first_pattern(mismatch, native)
    if mismatch.has_complex_numbers:
        return first_pattern(mismatch, native)
    if (~mismatch.ours.isfinite() & mismatch.oracle.isfinite()).any():
        nonfinite = next(locations.find_nonfinite(mismatch))
        for finding in find_special_values(mismatch):
            return replace(nonfinite, statement=f"{nonfinite.statement}; it {finding.statement}")
        return nonfinite
    probe = native.probe(mismatch.variant)
    for finding in find_special_values(mismatch):
        checked = check_claim(finding, mismatch, probe)
        return first_pattern(mismatch, native) if checked is None else checked
    for finding in find_condition(mismatch, probe):
        return finding
    kind = "only at zeros" if locations.output_has_zeros(mismatch) else "only at ties"
    statement = "is wrong only for inputs rounded to whole numbers, where intermediate values are 0 or equal"
    claim = Finding(kind, mismatch.quantity, statement, locations.worst_example(mismatch))
    checked = check_claim(claim, mismatch, probe)
    return first_pattern(mismatch, native) if checked is None else checked
