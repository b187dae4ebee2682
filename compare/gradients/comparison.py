"""The comparison of one case: every output and gradient, in every dtype, memory layout and kind of data."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from compare.case import Case, CaseError
from compare.case_errors import errors_name_the_case, traceback_of_user
from compare.gradients.call_mistakes import add_call_mistakes
from compare.gradients.case_runner import CaseRunner, ComparedTensors
from compare.gradients.diagnosis.diagnose import diagnose
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.one_cause import tell_once
from compare.gradients.garbage_collection import only_young_objects_collected
from compare.gradients.measure import REFUSED, WRONG, Row
from compare.gradients.run_variant import OUTPUT, gradient_name
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.source_findings import add_corrections
from compare.gradients.variants import DATA, DTYPES, Variant, variants
from compare.gradients.zeros_and_ties import count_zeros_and_ties


@dataclass(frozen=True)
class Comparison:
    """Result of comparing one case.

    Attributes:
        rows: one for each output and gradient of each variant.
        findings: descriptions of what is wrong, the most informative first; empty if nothing is.
        census: for each kind of data, counts of exact zeros, ties and so on.
        examples: for every quantity, ours and the oracle: in the first variant where it is wrong, otherwise in
            contiguous float32.
        search_note: where something is wrong and no change of the source is told, a sentence on what was not tried.
    """

    case: Case
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    census: dict[str, dict[str, int]]
    examples: dict[str, ComparedTensors] = field(default_factory=dict)
    search_note: str = ""

    @property
    def ok(self) -> bool:
        """True if every difference is within the tolerance or explained by a convention."""
        return not self.findings

    def wrong(self) -> list[Row]:
        """Rows whose status is "wrong"."""
        return [row for row in self.rows if row.status == WRONG]

    def explained(self) -> dict[str, int]:
        """Number of elements that each convention explains, over all variants."""
        counts: dict[str, int] = {}
        for row in self.rows:
            for name, count in row.explained.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def unchecked(self) -> list[str]:
        """Sentences about what was not compared, and about elements whose value rounding decides."""
        sentences = []
        if self.case.native is None:
            sentences.append(
                "There is no native function: the forward is unchecked, and the gradients are compared with finite "
                "differences in float64, then in the other dtypes with those in float64."
            )
            if undetermined := sum(row.undetermined for row in self.rows):
                sentences.append(f"Finite differences give no gradient at {undetermined:,} elements.")
        refused: dict[str, list[Variant]] = {}
        for row in self.rows:
            if row.status == REFUSED:
                refused.setdefault(row.message, []).append(row.variant)
        for message, skipped in refused.items():
            others = len(skipped) - 1
            more = f" and {others} more variant{'s' * (others > 1)}" if others else ""
            sentences.append(f"Not compared in {skipped[0]}{more}: {message}")
        # Half types round so coarsely that many elements are near a kink: that says little about the function.
        at_kinks = [
            f"{row.at_kinks:,} of {row.size:,} of {row.quantity} in {row.variant}"
            for row in self.rows
            if row.at_kinks and row.variant.dtype in (torch.float64, torch.float32)
            and row.variant == Variant(row.variant.dtype, device=row.variant.device)
        ]  # fmt: skip
        if at_kinks:
            sentences.append(
                "Elements at a kink, where rounding decides, have the jump there as their tolerance: "
                f"{', '.join(at_kinks)}."
            )
        return sentences

    def __str__(self) -> str:
        compared = [row for row in self.rows if row.is_compared]
        num_wrong = len(self.wrong())
        if self.ok:
            lines = [f"{self.case.name}: {len(compared)} comparisons, none is wrong"]
            worst = max(compared, key=lambda row: row.tolerance_used, default=None)
            if worst is not None:
                used = f"{100 * worst.tolerance_used:.0f} % of the tolerance"
                lines.append(f"  largest error: {used}, in {worst.quantity}, {worst.variant}")
        else:
            result = f"{num_wrong} of {len(compared)} comparisons are wrong"
            if not num_wrong:
                result = f"{len(compared)} comparisons of single calls are right; others are wrong"
            lines = [f"{self.case.name}: {result}"]
            lines += [f"  {line}" for finding in self.findings for line in str(finding).splitlines()]
        lines += [
            f"  {count} elements differ from native and follow the convention {name!r}"
            for name, count in self.explained().items()
        ]
        sentences = [*self.unchecked(), *([self.search_note] if self.search_note else [])]
        return "\n".join([*lines, *(f"  {sentence}" for sentence in sentences)])


def compare(
    case: Case,
    *,
    dtypes: Iterable[torch.dtype] = DTYPES,
    device: str = "cpu",
    seed: int = 0,
    progress: Any = None,
) -> Comparison:
    """Run ``case.ours`` and ``case.native`` in every variant, and describe the kind of every mistake.

    Args:
        progress: a tqdm bar, or anything with its ``update`` method, which is called once.

    Raises:
        CaseError: ``native`` raises in float64 or in all of ``dtypes``, the case has no floating-point input or
            output, the outputs have no elements, or nothing could be compared for another reason; the message has
            file and line of the case's code where that raised an exception.
        TypeError: ``case`` is no :class:`Case`.
    """
    if not isinstance(case, Case):
        raise TypeError(f"compare: expected a compare.Case, got {type(case).__name__}")
    with errors_name_the_case(case.name):
        dtypes = tuple(dtypes)
        kept = KeptValues(case.ours)
        runner = CaseRunner(case, device, seed, dtypes)
        rows: list[Row] = []
        # Finite differences give no gradients at zeros and ties: whole numbers are for cases with a native function.
        whole_numbers = case.whole_numbers and case.native is not None
        for variant in variants(dtypes, device, whole_numbers):
            if runner.has_layouts_of(variant):
                rows += runner.rows(variant)
        if not any(row.is_compared for row in rows):
            reasons = [f"in {row.variant}: {row.message}" for row in rows if row.status == REFUSED]
            reason = reasons[0] if reasons else "finite differences give no gradient at any element"
            raise CaseError(f"{case.name}: nothing could be compared; {reason}")
        side_effects = runner.find_side_effects()
        if runner.mismatches or side_effects:
            runner.check_native()
        wrong = {mismatch.quantity for mismatch in runner.mismatches}
        right_inputs = tuple(name for name in runner.input_names if gradient_name(name) not in wrong)
        is_output_wrong = any(quantity.startswith(OUTPUT) for quantity in wrong)
        native = NativeOracle(case, runner.native_rerunner, seed, right_inputs, is_output_wrong)
        with only_young_objects_collected() if runner.mismatches else nullcontext():
            findings = diagnose(runner.mismatches, rows, side_effects, native)
            findings = tell_once(add_call_mistakes(findings, runner, dtypes, rows, side_effects))
            findings, search_note = add_corrections(findings, runner, rows, side_effects, native, kept)
        kinds_of_data = DATA if whole_numbers else DATA[:1]
        census = {data: count_zeros_and_ties(case, Variant(data=data, device=device), seed) for data in kinds_of_data}
        if progress is not None:
            progress.update(1)
        return Comparison(case, tuple(rows), tuple(findings), census, runner.examples, search_note)


def assert_matches(case: Case, **options: Any) -> None:
    """Assert in a test that :func:`compare` finds nothing wrong; ``options`` are its keyword arguments.

    Raises:
        AssertionError: something is wrong; the message lists the findings.
        CaseError, TypeError: those of :func:`compare`. A traceback shows the case's own code, and not compare's.
    """
    __tracebackhide__ = True  # pytest shows the test's line as the last one
    try:
        comparison = compare(case, **options)
    except CaseError as error:
        if error.__cause__ is not None:
            error.__cause__.with_traceback(traceback_of_user(error.__cause__))
        raise error.with_traceback(None) from error.__cause__
    if not comparison.ok:
        raise AssertionError(str(comparison))
