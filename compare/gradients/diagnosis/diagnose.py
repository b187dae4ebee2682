"""The diagnosis: the kind of mistake in every wrong output and gradient, and the evidence for it.

First, the variants in which a quantity is wrong are compared. If it is correct in float64 with contiguous tensors,
the dtype or layout in which it is wrong is the finding. Otherwise one variant's tensors are examined. Patterns are
tried from the special to the general: the whole tensor transformed, scaled or replaced; the locations of wrong
elements; the terms of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch

from compare.case import Case
from compare.case_errors import find_location
from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.conjugates import find_conjugated
from compare.gradients.diagnosis.contributions import find_missing_contributions, find_overwritten_contributions
from compare.gradients.diagnosis.element_factors import find_own_factors
from compare.gradients.diagnosis.exactness import find_narrower_dtype
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.input_uses import find_missing_uses
from compare.gradients.diagnosis.mismatch import NO_GRADIENT, WRONG_DTYPE, Mismatch, RerunNative
from compare.gradients.diagnosis.missing_terms import find_missing_term
from compare.gradients.diagnosis.one_cause import share_causes
from compare.gradients.diagnosis.only_where import find_condition
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.second_question import ask_again, ask_jacobian, confirmed, is_right_if_symmetric
from compare.gradients.diagnosis.special_claims import check_claim
from compare.gradients.diagnosis.special_values import find_special_values
from compare.gradients.diagnosis.whole_tensor import find_factor, find_whole_tensor_patterns
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.measure import REFUSED, WRONG, Row
from compare.gradients.run_variant import OUTPUT, make_leaf
from compare.gradients.variants import SECOND_DRAW, Variant


@dataclass(frozen=True)
class NativeOracle:
    """The case, and a way to rerun native in float64 on a variant's values with other incoming gradients."""

    case: Case
    rerunner: Callable[[Variant], RerunNative]
    seed: int
    right_inputs: tuple[str, ...] = ()
    probes: dict[Variant, Probe] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any] | None:
        """The native function; None if there is none."""
        return self.case.native

    def probe(self, variant: Variant) -> Probe:
        """Return a way to ask ours and native again, on other draws of a variant."""
        variant = replace(variant, data="whole numbers" if variant.data == "whole numbers" else "drawn")
        if variant not in self.probes:
            self.probes[variant] = Probe(self.case, variant, self.seed, self.rerunner(variant), self.right_inputs)
        return self.probes[variant]


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
    quantities = dict.fromkeys(mismatch.quantity for mismatch in mismatches)
    findings = [
        _diagnose_quantity([m for m in mismatches if m.quantity == quantity], rows, native) for quantity in quantities
    ]
    findings.sort(key=lambda f: not f.quantity.startswith(OUTPUT))
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
        and _has_float32_errors(plain)
    ):
        statement = "is wrong only in float64, where its errors are those of float32"
        return Finding("only in one dtype", quantity, statement, locations.worst_example(plain))
    if plain is not None:
        finding = _first_pattern(plain, native)
        right = [str(dtype).removeprefix("torch.") for dtype in tested_dtypes - wrong_dtypes]
        if finding.kind == "raises" and right:
            wrong_names = [str(dtype).removeprefix("torch.") for dtype in tested_dtypes & wrong_dtypes]
            where = f"in {join_words(sorted(wrong_names))}, and not in {join_words(sorted(right))}"
            return replace(finding, statement=f"{finding.statement} {where}")
        return finding
    mismatch = mismatches[0]
    if torch.float64 not in wrong_dtypes and torch.float64 in tested_dtypes:
        return _dtype_finding(mismatch, wrong, rows)
    in_widest = [v for v in wrong if v.dtype == mismatch.variant.dtype]  # rounding makes zeros and ties in the others
    if all(v.data == "whole numbers" for v in in_widest):
        return _whole_numbers_finding(mismatch, native)
    if all(v.layout == v.gradient_layout == "contiguous" for v in wrong):
        return _first_pattern(next(m for m in mismatches if m.variant.data == SECOND_DRAW), native)
    return _layout_finding(mismatch, wrong, native)


def _has_float32_errors(mismatch: Mismatch) -> bool:
    """Return True if most elements are wrong, and each by a few rounding errors of float32."""
    if mismatch.message or not mismatch.ours.isfinite().all():
        return False
    error, norm = float((mismatch.ours - mismatch.oracle).norm()), float(mismatch.oracle.norm())
    wrong_fraction = float(mismatch.wrong.double().mean())
    return wrong_fraction > 0.25 and error < 16 * torch.finfo(torch.float32).eps * norm


def _dtype_finding(mismatch: Mismatch, wrong: set[Variant], rows: Sequence[Row]) -> Finding:
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
    if not mismatch.has_complex_numbers:
        for finding in find_factor(mismatch):
            evidence += f"; it {finding.statement}"
    if row.tolerance_used < math.inf:
        evidence += f"; the error is {row.tolerance_used:.3g} times the tolerance"
    if names != ["float32"] and row.tolerance_used < 50 and not row.by_norm:
        evidence += "; if a ReLU or a maximum follows a sum inside the function, set kinks=True in the case"
    return Finding("only in one dtype", mismatch.quantity, statement, evidence)


def _layout_finding(mismatch: Mismatch, wrong: set[Variant], native: NativeOracle) -> Finding:
    layouts = []
    for v in wrong:
        if v.layout != "contiguous":
            layouts.append(f"{v.layout} inputs")
        if v.gradient_layout != "contiguous":
            layouts.append(f"{v.gradient_layout} incoming gradients")
    statement = f"is wrong only with {' and '.join(dict.fromkeys(sorted(layouts)))}"
    if mismatch.message:
        return Finding("only in one layout", mismatch.quantity, statement, mismatch.message)
    pattern = _first_pattern(mismatch, native)
    evidence = f"in {mismatch.variant}: {pattern.statement}" + (f"; {pattern.evidence}" if pattern.evidence else "")
    return Finding("only in one layout", mismatch.quantity, statement, evidence)


def _whole_numbers_finding(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Correct for random inputs, wrong for whole numbers: the cause is zeros or ties, in an input or inside."""
    if mismatch.message:
        return _first_pattern(mismatch, native)
    if mismatch.has_complex_numbers:
        return _first_pattern(mismatch, native)
    if (~mismatch.ours.isfinite() & mismatch.oracle.isfinite()).any():
        nonfinite = next(locations.find_nonfinite(mismatch))
        for finding in find_special_values(mismatch):
            return replace(nonfinite, statement=f"{nonfinite.statement}; it {finding.statement}")
        return nonfinite
    probe = native.probe(mismatch.variant)
    for finding in find_special_values(mismatch):
        checked = check_claim(finding, mismatch, probe)
        return _first_pattern(mismatch, native) if checked is None else checked
    for finding in find_condition(mismatch, probe):
        return finding
    kind = "only at zeros" if locations.output_has_zeros(mismatch) else "only at ties"
    statement = "is wrong only for inputs rounded to whole numbers, where intermediate values are 0 or equal"
    claim = Finding(kind, mismatch.quantity, statement, locations.worst_example(mismatch))
    checked = check_claim(claim, mismatch, probe)
    return _first_pattern(mismatch, native) if checked is None else checked


def _first_pattern(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Finding of the first pattern that fits a mismatch."""
    if mismatch.message:
        return _finding_without_numbers(mismatch, native)
    finding = next(_patterns(mismatch, native), None)
    if finding is None:
        n, total = int(mismatch.wrong.sum()), mismatch.wrong.numel()
        cosine = torch.nn.functional.cosine_similarity(mismatch.ours.flatten(), mismatch.oracle.flatten(), 0)
        statement = f"{n} of {total} elements are wrong{locations.wrong_slices(mismatch)}"
        evidence = f"cosine similarity {float(cosine):.6f}; {locations.worst_example(mismatch)}"
        finding = Finding("unknown", mismatch.quantity, statement, evidence)
    if mismatch.is_output:
        return Finding("wrong output", mismatch.quantity, finding.statement, finding.evidence)
    return finding


def _patterns(mismatch: Mismatch, native: NativeOracle) -> Iterator[Finding]:
    """Special patterns before general ones, and those that cost a few native runs before those that cost hundreds."""
    rerun_native, seed = native.rerunner(mismatch.variant), native.seed
    yield from locations.find_zero(mismatch) if not mismatch.ours.any() else ()
    yield from locations.find_nonfinite(mismatch)
    if mismatch.has_complex_numbers:  # the other patterns are about real numbers
        yield from find_factor(mismatch)
        yield from find_conjugated(mismatch, rerun_native, seed)
        return
    if mismatch.is_output:
        yield from find_whole_tensor_patterns(mismatch, rerun_native, seed)
        yield from _locations(mismatch)
        yield from locations.find_zero(mismatch)
        return
    probe = native.probe(mismatch.variant)
    yield from find_narrower_dtype(mismatch, probe)
    rerun_on = lambda m: lambda gradients, inputs=None: rerun_native(gradients, inputs or m.inputs)  # noqa: E731
    yield from confirmed(lambda m: find_whole_tensor_patterns(m, rerun_on(m), seed, probe), mismatch, probe)
    located = next(_locations(mismatch), None)
    condition = next(find_condition(mismatch, probe), None)
    # A condition on values tells more than a place, and a place that is confirmed more than a coincidence.
    if located is not None and (condition is None or located.kind in ("only at borders", "only at bounds")):
        yield located
    if condition is not None and ("; it is " in condition.statement or condition.kind == "step left out"):
        yield condition
    symmetric = "; it is right for a symmetric incoming gradient" if is_right_if_symmetric(mismatch, probe) else ""
    for finding in chain(
        ask_again(mismatch, probe),
        _contributions(mismatch, native),
        ask_jacobian(mismatch, probe, of_pairs=True),
        find_overwritten_contributions(mismatch, rerun_native, seed) if native.function is not None else (),
        ask_jacobian(mismatch, probe, of_pairs=False),
    ):
        where = f"; it {condition.statement}" if condition is not None else ""
        yield replace(
            finding, statement=finding.statement + symmetric, evidence=(finding.evidence + where).removeprefix("; ")
        )
    yield from confirmed(lambda m: find_missing_term(m, seed), mismatch, probe)
    yield from [condition] if condition is not None and condition.kind != "unknown" else []
    yield from find_own_factors(mismatch, probe)
    yield from [condition] if condition is not None else []
    yield from locations.find_zero(mismatch)
    yield from locations.find_few_elements(mismatch)


def _contributions(mismatch: Mismatch, native: NativeOracle) -> Iterator[Finding]:
    """Contributions to the sum that are missing, each of which costs a run of native."""
    rerun_native, seed, probe = native.rerunner(mismatch.variant), native.seed, native.probe(mismatch.variant)
    if native.function is None:
        return
    rerun_on = lambda m: lambda gradients, inputs=None: rerun_native(gradients, inputs or m.inputs)  # noqa: E731
    yield from confirmed(lambda m: find_missing_contributions(m, rerun_on(m), seed), mismatch, probe)
    yield from confirmed(lambda m: find_missing_uses(m, native.function, seed), mismatch, probe)


def _locations(mismatch: Mismatch) -> Iterator[Finding]:
    yield from find_special_values(mismatch)
    if mismatch.oracle.numel() > 3:
        yield from locations.find_few_elements(mismatch, most=3)  # before borders: so few elements show no border
    yield from locations.find_borders(mismatch)
    if mismatch.oracle.numel() > 3:
        yield from locations.find_few_elements(mismatch)


def _number_of_outputs(mismatch: Mismatch, native: NativeOracle) -> str:
    """Statement of how many outputs native has, and ours."""
    expected = native.rerunner(mismatch.variant)(mismatch.incoming(native.seed))
    counts = [sum(name.startswith(OUTPUT) for name in values) for values in (expected, mismatch.run.values)]
    return f"native has {counts[0]} output{'' if counts[0] == 1 else 's'}, ours {counts[1]}"


def _reason_of_no_gradient(mismatch: Mismatch, native: NativeOracle) -> str:
    """Words on outputs that do not require a gradient; "" if they do, so that backward returned None."""
    leaves = [make_leaf(value, mismatch.variant) for value in mismatch.inputs.values()]
    result = native.case.ours(*leaves)  # it did not raise in this variant
    outputs = [o for o in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(o, torch.Tensor)]
    if any(output.requires_grad for output in outputs):
        return "backward returns None for it, or the output does not depend on it"
    if isinstance(result, list):
        return "the function returns a list, and no output in it requires a gradient: forward must return a tuple"
    return "the output does not require a gradient: it is detached, or made without autograd"


def _finding_without_numbers(mismatch: Mismatch, native: NativeOracle) -> Finding:
    """Finding for a missing gradient, another shape or dtype, or an exception."""
    quantity, message = mismatch.quantity, mismatch.message
    if message == NO_GRADIENT:
        return Finding("none", quantity, message, _reason_of_no_gradient(mismatch, native))
    if mismatch.is_output and mismatch.run.error is None and (mismatch.ours is None or mismatch.oracle is None):
        return Finding("wrong output", quantity, _number_of_outputs(mismatch, native), message)
    if mismatch.ours is not None and mismatch.oracle is not None and mismatch.ours.shape != mismatch.oracle.shape:
        ours, oracle = mismatch.ours.double().cpu(), mismatch.oracle.double().cpu()
        evidence = f"got shape {tuple(ours.shape)}, expected {tuple(oracle.shape)}"
        kind, statement = "wrong shape", f"has shape {tuple(ours.shape)}; expected {tuple(oracle.shape)}"
        close = lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
        if ours.squeeze().shape == oracle.squeeze().shape:  # they differ in dimensions of length 1
            evidence = "the numbers are right" if close(ours.reshape(oracle.shape), oracle) else ""
        elif not mismatch.is_output:
            unsummed = [d for d in range(ours.dim()) if close(ours.sum(d), oracle)]
            if oracle.dim() and any(close(ours, reduced) for reduced in (oracle.sum(0), oracle.mean(0))):
                kind, statement = "summed over the batch", "is summed or averaged over dimension 0"
            elif unsummed:
                kind, statement = "not summed over the batch", f"is not summed over dimension {unsummed[0]}"
            elif oracle.dim() > 1 and close(ours, oracle.mT):
                kind, statement = "transposed", "is transposed"
        return Finding(kind, quantity, statement, evidence)
    if message.startswith(WRONG_DTYPE):
        return Finding("wrong output", quantity, message)
    if mismatch.run.error is None:
        return Finding("raises", quantity, message)
    location = find_location(mismatch.run.error)
    evidence = f"{message} ({location})" if location else message
    return Finding("raises", quantity, "an exception is raised", evidence)
