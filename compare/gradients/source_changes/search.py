"""The search for single edits of the user's source that make what is wrong right."""

from __future__ import annotations

import ast
import copy
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.measure import WRONG
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import RunResult
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.candidates import Candidate, Candidates
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.variants import Variant

# Calls of functions in all runs of a search, with RUN_CALLS for each run besides: about two seconds; fewer where the
# mistakes have names already.
MAX_CALLS, MAX_CALLS_IF_NAMED = 1_200_000, 600_000
RUN_CALLS = 120
MAX_COMPARISONS = 20  # of edited functions in all variants
MAX_ELEMENTS = 100_000  # of all inputs: the numbers of larger ones cost more than the calls do
ALTERNATIVES = 6
MIN_TEXT, MAX_TEXT = 20, 70  # characters of an expression in a report
SIMPLE = (ast.Return, ast.Assign, ast.AugAssign, ast.Expr)  # statements in one line
MIN_CHANGE = 1e-3  # a right element has lost at least this share of its error, or is within the tolerance


@dataclass(frozen=True)
class Correction:
    """An edit that makes quantities right, and no other wrong.

    Attributes:
        file, line: where it is.
        old, new: the text of the edited expression or statement, before and after.
        quantities: those that were wrong and are right with the edit.
        makes_all_right: True if nothing is wrong with the edit.
    """

    file: str
    line: int
    old: str
    new: str
    quantities: frozenset[str]
    makes_all_right: bool


def find_corrections(
    runner: CaseRunner,
    mismatches: Sequence[Mismatch],
    variants: Sequence[Variant],
    max_calls: int = MAX_CALLS,
) -> list[Correction]:
    """The nearest edits with which nothing is wrong in any variant; without one, those for some of the quantities.

    Args:
        mismatches: everything that is wrong.
        variants: those that were compared.
        max_calls: limit of the work, in calls of functions.
    """
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):  # or each run would print
        return _find_corrections(runner, mismatches, variants, max_calls)


def _find_corrections(
    runner: CaseRunner, mismatches: Sequence[Mismatch], variants: Sequence[Variant], max_calls: int
) -> list[Correction]:
    first = mismatches[0]
    if sum(value.numel() for value in first.inputs.values()) > MAX_ELEMENTS:
        return []
    targets = [m for m in mismatches if m.variant == first.variant]
    wrong = frozenset(m.quantity for m in mismatches)
    raises = first.run.error is not None  # then nothing is known of the other quantities
    runs = EditedRuns(runner, first)
    called, num_calls = find_called_functions(runs.run)
    calls, comparisons = max_calls, MAX_COMPARISONS
    corrections: list[tuple[int, Correction]] = []
    for candidate in Candidates(called):
        complete = [cost for cost, correction in corrections if correction.makes_all_right]
        is_enough = len(complete) == ALTERNATIVES or (complete and candidate.cost > complete[0])
        if calls < 0 or not comparisons or is_enough:
            break
        function = candidate.function
        with candidate.edit.made():
            code = function.compiled()
            if code is None:
                continue
            calls -= RUN_CALLS + num_calls // (1 + runs.backward_is_repeatable)
            result = runs.run_edited(function, code)
            right = frozenset(target.quantity for target in targets if _is_right(result, target))
            if not right or any(right <= c.quantities and right != wrong for _, c in corrections):
                continue  # the nearest edit for these quantities is known
            comparisons -= 1
            with function.exchanged(code):
                still_wrong = _wrong_quantities(runner, mismatches, variants, ends_early=not raises)
        if still_wrong < wrong or (raises and still_wrong and not wrong & still_wrong):
            corrections.append((candidate.cost, _correction(candidate, wrong - still_wrong, not still_wrong)))
    complete_ones = [c for _, c in corrections if c.makes_all_right]
    return complete_ones or [c for _, c in corrections]


def _is_right(result: RunResult, target: Mismatch) -> bool:
    """True if a run gives about the expected numbers where they were wrong; the comparison that follows is exact."""
    got, expected = result.values.get(target.quantity), target.oracle
    if result.error is not None or got is None or expected is None:
        return False
    got = as_real(got).double().cpu()
    if got.shape != expected.shape:
        return False
    if target.wrong is None or target.ours is None or target.ours.shape != expected.shape:
        return bool(((got - expected).abs() <= 1e-2 * expected.abs().max()).all()) if got.numel() else True
    wrong = target.wrong.cpu()
    before, now = ((t.double().cpu() - expected)[wrong].abs() for t in (target.ours, got))
    limit = (MIN_CHANGE * before.nan_to_num(posinf=float("inf"), nan=float("inf"))).clamp(max=1e300)
    same = (got == expected)[wrong] | (got.isnan() & expected.isnan())[wrong]
    return bool(((now <= limit.clamp(min=2 * target.tolerance)) & now.isfinite() | same).all())


def _wrong_quantities(
    runner: CaseRunner, mismatches: Sequence[Mismatch], variants: Sequence[Variant], *, ends_early: bool
) -> frozenset[str]:
    """Names of what is wrong in any variant; with ``ends_early``, until no less is wrong than before."""
    fresh = copy.copy(runner)
    fresh.mismatches, fresh.examples = [], {}
    before = {m.quantity for m in mismatches}
    wrong: set[str] = set()
    first = dict.fromkeys(m.variant for m in mismatches)
    for variant in [*first, *(v for v in variants if v not in first)]:
        wrong |= {row.quantity for row in fresh.rows(variant) if row.status == WRONG}
        if ends_early and not wrong < before:
            return frozenset(before | wrong)
    return frozenset(wrong)


def _correction(candidate: Candidate, quantities: frozenset[str], makes_all_right: bool) -> Correction:
    edit = candidate.edit
    _, old, new = edit.changes[0]
    shown: Any = old
    for ancestor in reversed(edit.ancestors[1:]):  # as much as it takes to recognize the place
        if isinstance(ancestor, (ast.keyword, ast.comprehension)):
            continue
        if len(ast.unparse(shown)) >= MIN_TEXT:
            break
        if not isinstance(ancestor, (ast.expr, *SIMPLE)) or len(ast.unparse(ancestor)) > MAX_TEXT:
            break
        shown = ancestor
    before = _text(shown)
    with edit.made():
        after = "" if new is None else _text(new if shown is old else shown)
    if len(edit.changes) > 1 and isinstance(old, ast.stmt):  # two statements in the other order
        before, after = f"{_text(old)}; {_text(new)}", f"{_text(new)}; {_text(old)}"
    return Correction(candidate.function.code.co_filename, old.lineno, before, after, quantities, makes_all_right)


def _text(node: Any) -> str:
    """The text of a node in one line."""
    return "; ".join(line.strip() for line in ast.unparse(ast.fix_missing_locations(node)).splitlines())
