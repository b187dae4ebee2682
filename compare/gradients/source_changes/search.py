"""The search for single edits of the user's source that make every comparison right."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.numbers import as_real
from compare.gradients.measure import WRONG
from compare.gradients.run_variant import RunResult, run_variant
from compare.gradients.source_changes.call_edits import call_edits, subscript_edits, tuple_edits
from compare.gradients.source_changes.called_functions import CalledFunction, find_called_functions
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown
from compare.gradients.source_changes.edits import Edit, find_sites
from compare.gradients.source_changes.expression_edits import (
    comparison_edits,
    constant_edits,
    name_edits,
    operator_edits,
    whole_name_edits,
)
from compare.gradients.source_changes.insertion_edits import operand_edits, product_edits, step_edits
from compare.gradients.source_changes.statement_edits import exponent_edits, order_edits, statement_edits
from compare.gradients.variants import Variant

MAX_COST = 1_500_000  # Python calls and tensor operations in all runs of a search: two or three seconds
RUN_COST = 120  # of one run besides those of the function itself
MAX_ELEMENTS = 200_000  # of all inputs; larger ones cost more than the calls do
ALTERNATIVES = 3


@dataclass(frozen=True)
class Correction:
    """An edit that makes the function right.

    Attributes:
        file, line: where it is.
        old, new: source text before and after.
    """

    file: str
    line: int
    old: str
    new: str
    kind: str
    cost: int
    in_backward: bool


@dataclass(frozen=True)
class _Candidate:
    function: EditableFunction
    edit: Edit
    rank: tuple[int, int, int]


def find_corrections(runner: CaseRunner, mismatches: Sequence[Mismatch], variants: Sequence[Variant]) -> list[Correction]:
    """The edits of the least cost with which no quantity is wrong in any variant.

    Args:
        variants: those that were compared.
    """
    first = mismatches[0]
    run = lambda: run_variant(runner.case.ours, first.inputs, first.variant, runner.seed, finds_changes=False)  # noqa: E731
    if sum(value.numel() for value in first.inputs.values()) > MAX_ELEMENTS:
        return []
    called, num_calls = find_called_functions(run)
    budget = MAX_COST // (num_calls + RUN_COST)
    found: list[Correction] = []
    least = None
    for candidate in _candidates(called)[:budget]:
        if least is not None and candidate.rank[0] > least:
            break
        function = candidate.function
        with candidate.edit.made():
            code = function.compiled()
            if code is None or code.co_code == function.code.co_code and code.co_consts == function.code.co_consts:
                continue
            with function.exchanged(code):
                if _is_right(run(), first) and _all_right(runner, mismatches, variants):
                    found.append(_correction(candidate))
                    least = candidate.rank[0]
        if len(found) == ALTERNATIVES:
            break
    return found


def _candidates(called: list[CalledFunction]) -> list[_Candidate]:
    """All edits of all functions, those of the least cost first."""
    candidates: list[_Candidate] = []
    for n, each in enumerate(called):
        try:
            function = EditableFunction(each)
        except SourceUnknown:
            continue
        penalty = 0 if each.in_backward else 1
        for m, edit in enumerate(_edits(each, function.node)):
            candidates.append(_Candidate(function, edit, (edit.cost + penalty, n, m)))
    return sorted(candidates, key=lambda candidate: candidate.rank)


def _edits(called: CalledFunction, node: ast.FunctionDef | ast.Lambda) -> Iterator[Edit]:
    sites = find_sites(called, node)
    dims = max((v.dim() for v in called.local_values.values() if isinstance(v, Tensor)), default=0)
    attributes: dict[str, list[str]] = {}
    for site in sites:
        yield from operator_edits(site)
        yield from constant_edits(site)
        yield from comparison_edits(site)
        yield from name_edits(site, called, attributes)
        yield from call_edits(site)
        yield from subscript_edits(site)
        yield from tuple_edits(site, called)
        yield from statement_edits(site)
        yield from exponent_edits(site)
        yield from step_edits(site, called, dims)
        yield from operand_edits(site, called)
    yield from whole_name_edits(sites, called)
    yield from order_edits(node, sites)
    for site in sites:
        yield from product_edits(site, called)


def _is_right(result: RunResult, first: Mismatch) -> bool:
    """True if a run gives the expected numbers of the first wrong quantity; about, since all is compared afterwards."""
    if result.error is not None:
        return False
    got, expected = result.values.get(first.quantity), first.oracle
    if expected is None or first.wrong is None:
        return got is not None or expected is None
    if got is None or (got := as_real(got).double().cpu()).shape != expected.shape:
        return False
    before = (first.ours - expected).abs()
    now = (got - expected).abs()
    worst = float(before[first.wrong].nan_to_num(posinf=1e300).max())
    return not bool((now[first.wrong] > max(2 * first.tolerance, 1e-3 * worst)).any()) and not bool(
        now[first.wrong].isnan().any() & ~expected[first.wrong].isnan().any()
    )


def _all_right(runner: CaseRunner, mismatches: Sequence[Mismatch], variants: Sequence[Variant]) -> bool:
    """True if nothing is wrong in any variant, those first in which something was."""
    fresh = copy.copy(runner)
    fresh.mismatches, fresh.examples = [], {}
    first = list(dict.fromkeys(m.variant for m in mismatches))
    for variant in [*first, *(v for v in variants if v not in first)]:
        if any(row.status == WRONG for row in fresh.rows(variant)):
            return False
    return True


def _correction(candidate: _Candidate) -> Correction:
    edit, function = candidate.edit, candidate.function
    place, old, new = edit.changes[0]
    return Correction(
        function.code.co_filename,
        old.lineno,  # type: ignore[attr-defined]
        ast.unparse(old),
        "" if new is None else ast.unparse(ast.fix_missing_locations(new)),
        edit.kind,
        edit.cost,
        function.called.in_backward,
    )
