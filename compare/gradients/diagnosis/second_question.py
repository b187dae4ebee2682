"""Further questions to ours and native where one gradient of one draw does not tell the mistake.

A finding must hold in a second draw of inputs and incoming gradients. Patterns with fewer free numbers come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from compare.gradients.diagnosis.element_factors import FUNCTIONS, find_element_factors, find_slice_factors
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.incoming_patterns import find_nonlinear, find_transformed
from compare.gradients.diagnosis.jacobian import Jacobian, jacobians
from compare.gradients.diagnosis.jacobian_patterns import find_jacobian_patterns
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.diagnosis.native_paths import NativePaths
from compare.gradients.diagnosis.only_where import find_condition_of_factor
from compare.gradients.diagnosis.path_findings import find_path_findings
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.used_derivatives import find_used_derivative
from compare.gradients.run_variant import OUTPUT

Pattern = Callable[[Mismatch], Iterator[Finding]]


def confirmed(pattern: Pattern, mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The findings of a pattern that it makes in a second draw too; all of them if there is no second draw."""
    second = probe.mismatch(mismatch, 1)
    again: set[tuple[str, str]] | None = None
    for finding in pattern(mismatch):
        if second is None:
            yield finding
            continue
        if again is None:
            again = {(f.kind, f.statement) for f in pattern(second)} if second.wrong.any() else set()
        if (finding.kind, finding.statement) in again:
            yield finding


def ask_again(mismatch: Mismatch, probe: Probe, search: NativePaths | None) -> Iterator[Finding]:
    """Findings about a gradient of real numbers, with an example of a wrong element."""
    yield from with_examples(_ask(mismatch, probe, search), mismatch)


def with_examples(findings: Iterator[Finding], mismatch: Mismatch) -> Iterator[Finding]:
    """The findings, each with a wrong element in its evidence."""
    for finding in findings:
        example = worst_example(mismatch)
        if "got" not in finding.evidence and example:
            finding = replace(finding, evidence="; ".join(word for word in (finding.evidence, example) if word))
        yield finding


def _ask(mismatch: Mismatch, probe: Probe, search: NativePaths | None) -> Iterator[Finding]:
    transformed = list(confirmed(lambda m: find_transformed(m, probe), mismatch, probe))
    yield from (f for f in transformed if f.kind != "missing term")
    matrices = jacobians(mismatch, probe)
    if matrices and not _is_linear(mismatch, probe, matrices):
        yield from confirmed(lambda m: find_nonlinear(m, probe), mismatch, probe)
    yield from confirmed(lambda m: find_element_factors(m, probe), mismatch, probe)
    if search is not None:
        yield from find_path_findings(search)
    yield from transformed
    yield from confirmed(lambda m: find_element_factors(m, probe, FUNCTIONS), mismatch, probe)
    used = list(confirmed(lambda m: find_used_derivative(m, probe), mismatch, probe))
    if used:  # a factor on each side of a condition is no coincidence, as the product of two formulas can be
        yield from find_condition_of_factor(mismatch, probe)
    yield from used


def ask_for_factors(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Findings with several free numbers, a factor for each slice or on each side of a condition."""
    yield from with_examples(confirmed(lambda m: find_slice_factors(m, probe), mismatch, probe), mismatch)
    yield from with_examples(find_condition_of_factor(mismatch, probe), mismatch)


def ask_jacobian(mismatch: Mismatch, probe: Probe, *, of_pairs: bool) -> Iterator[Finding]:
    """Findings about the structure of the Jacobian that hold in a second draw too."""
    matrices = jacobians(mismatch, probe)
    if not matrices or not _is_linear(mismatch, probe, matrices):
        return
    second = probe.mismatch(mismatch, 1)
    again: set[tuple[str, str]] | None = None
    for finding in find_jacobian_patterns(mismatch, matrices, of_pairs=of_pairs):
        if second is not None and second.wrong.any():
            if again is None:
                repeated = find_jacobian_patterns(second, jacobians(second, probe), of_pairs=of_pairs)
                again = {(f.kind, f.statement) for f in repeated}
            if (finding.kind, finding.statement) not in again:
                continue
        yield finding


def _is_linear(mismatch: Mismatch, probe: Probe, matrices: list[Jacobian]) -> bool:
    """True if ours is the sum of its rows; True too where not all rows are known."""
    if not all(jacobian.is_complete for jacobian in matrices):
        return True
    incoming = mismatch.incoming(probe.seed)
    total = torch.zeros(mismatch.oracle.numel(), dtype=torch.float64)
    for n, jacobian in enumerate(matrices):
        output = mismatch.run.values[jacobian.output]
        total += incoming(n, output).double().cpu().flatten() @ jacobian.ours
    return equal_up_to_rounding(total.reshape(mismatch.ours.shape), mismatch.ours, 16 * mismatch.tolerance)


def is_right_if_symmetric(mismatch: Mismatch, probe: Probe) -> bool:
    """True if ours is right where the incoming gradient is a symmetric matrix."""
    output = mismatch.run.values.get(OUTPUT)
    if output is None or output.dim() < 2 or output.shape[-1] != output.shape[-2] or output.shape[-1] < 2:
        return False
    incoming = mismatch.incoming(probe.seed)
    symmetric = probe.compare(mismatch, mismatch.inputs, lambda n, o: incoming(n, o) + incoming(n, o).mT)
    return symmetric is not None and not bool(symmetric.wrong.any()) and bool(symmetric.oracle.any())
