"""Values that expressions of backward must have if all gradients are to be right, from backward's own derivatives.

The gradients that backward returns are functions of the value of each of its expressions. One run gives their
derivatives, by autograd. Where these have full rank, and the function is affine, one value alone makes all right. The
few elements of a sum leave the value of a summand open; but if it is the same for every incoming gradient, several
incoming gradients tell it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import cycle
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Incoming, Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.run_variant import gradient_name
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.equations import (
    Equations,
    have_same_values,
    jacobians,
    only_solution,
    stacked,
)
from compare.gradients.source_changes.expected_values import ExpectedValue
from compare.gradients.source_changes.places import Place
from compare.gradients.source_changes.recorded_values import INSTEAD, RECORD, builtin, recording_code, value_instead

MAX_ELEMENTS = 150  # of a value in all steps of a loop, and of a gradient that is differentiated
MAX_RUNS, MAX_OPEN = 60, 48  # further incoming gradients; elements of a value that they are to tell

Codes = dict[EditableFunction, CodeType]


def required_values(
    places: Sequence[Place], runs: EditedRuns, targets: Sequence[Mismatch], probe: Probe | None = None
) -> Iterator[ExpectedValue]:
    """Expressions with the only value that makes every gradient right, in the order of the places."""
    expected = {target.quantity: target.oracle for target in targets if target.oracle is not None}
    if not runs.backward_is_repeatable or len(expected) < len(targets):
        return
    numbers, codes = _recording(places)
    first = _equations(runs, codes, expected)
    if first is None:
        return
    numbered = [(place, [numbers.get(id(site), -1) for site in place.sites]) for place in places]
    further = list(_further_equations(first, numbered, runs, codes, probe, expected.keys()))
    for place, sites in numbered:
        change = only_solution(stacked([first], sites), first.errors)
        if change is None and further and all(have_same_values(first, each, sites) for each in further):
            every = [first, *further]
            change = only_solution(stacked(every, sites), torch.cat([each.errors for each in every]))
        sizes = [value.numel() for value in place.present]
        if change is not None and len(change) == sum(sizes):  # otherwise not all of its values are known
            value = _with_additions(place, change.split(sizes), runs)
            if value is not None:
                yield ExpectedValue(place, value, quantities=frozenset(expected))


def _with_additions(place: Place, additions: Sequence[Tensor], runs: EditedRuns) -> list[Tensor] | None:
    """The values with what must be added to each; in a loop, each depends on the earlier ones. None without one."""
    if len(additions) == 1:
        return [place.present[0].cpu() + additions[0].view(place.present[0].shape)]
    left = cycle(additions)
    values: list[Tensor] = []

    def add(_: int, value: Tensor) -> Tensor:
        values.append(value + next(left).view(value.shape).to(value))
        return values[-1]

    edits = (site.edit(value_instead(n, site.node), 1) for n, site in enumerate(place.sites))
    candidate = Candidate(tuple((place.function, edit) for edit in edits))
    with candidate.made():
        codes = candidate.compiled()
    if codes is None or place.more:
        return None
    with builtin(INSTEAD, add):
        runs.run_edited(codes)
    return [value.cpu() for value in values] if len(values) == len(additions) else None


def _further_equations(
    first: Equations,
    places: Sequence[tuple[Place, list[int]]],
    runs: EditedRuns,
    codes: Codes,
    probe: Probe | None,
    wrong: Set[str],
) -> Iterator[Equations]:
    """Equations of what is wrong for other incoming gradients, as many as the small values that are open take."""
    if probe is None or probe.case.native is None:
        return
    counts, still_open = [0], set()
    for _, sites in places:
        jacobian = stacked([first], sites)
        if jacobian is None or jacobian.shape[1] > MAX_OPEN or not jacobian.isfinite().all():
            continue
        if only_solution(jacobian, 0 * first.errors) is None:
            told = int(torch.linalg.matrix_rank(jacobian))
            counts.append(math.ceil(1.25 * jacobian.shape[1] / told) if told else 0)
            still_open |= set(sites) if told else set()
    for n in range(min(max(counts), MAX_RUNS)):
        incoming = probe.incoming(1 + n)
        right = probe.run_native(runs.first.inputs, incoming)
        known = {name: value for name, value in (right or {}).items() if name in wrong}
        equations = None if right is None else _equations(runs, codes, known, incoming, still_open)
        if equations is None:
            return
        yield equations


def _recording(places: Sequence[Place]) -> tuple[dict[int, int], Codes]:
    """Numbers of the expressions by the ids of their sites, and code that records their values."""
    sites: dict[EditableFunction, dict[int, Site]] = {}
    for place in places:
        own = sites.setdefault(place.function, {})
        own |= {id(site): site for site in place.sites if not _is_changed_in_place(site)}
    numbers: dict[int, int] = {}
    codes = {}
    for function, own in sites.items():
        code = recording_code(function, list(own.values()), len(numbers))
        numbers |= {each: len(numbers) + n for n, each in enumerate(own)}
        if code is not None:
            codes[function] = code
    return numbers, codes


def _is_changed_in_place(site: Site) -> bool:
    """True for the tensor of a method that changes it, such as ``add_``: a copy would change instead."""
    parent = site.ancestors[-1]
    return isinstance(parent, ast.Attribute) and parent.attr.endswith("_")


def _equations(
    runs: EditedRuns,
    codes: Codes,
    expected: Mapping[str, Tensor | None],
    incoming: Incoming | None = None,
    only: Set[int] | None = None,
) -> Equations | None:
    """Equations of one run; None where a gradient cannot be compared.

    Args:
        expected: right gradients. Others are right already; for other incoming gradients they are left out.
        incoming: other incoming gradients.
        only: numbers of the expressions that count; without it, all do.
    """
    values: dict[int, list[Tensor]] = {}

    def record(n: int, value: Any) -> Any:
        torch.set_grad_enabled(True)  # backward of a function that is once_differentiable has turned it off
        if not isinstance(value, Tensor) or value.dtype is not torch.float64 or value.numel() > MAX_ELEMENTS:
            return value
        if only is not None and n not in only:
            return value
        own = (value if value.requires_grad else value.detach().requires_grad_()).clone()
        values.setdefault(n, []).append(own)
        return own

    with builtin(RECORD, record):
        gradients = runs.attached_gradients(codes, incoming)
    rows: list[Tensor] = []
    errors: list[Tensor] = []
    for name, gradient in gradients.items():
        right = expected.get(gradient_name(name))
        if right is None and incoming is not None:
            continue
        if gradient.is_complex() or (right is not None and right.shape != gradient.shape):
            return None
        got = gradient.detach().cpu().double()
        error = torch.zeros_like(got) if right is None else right.cpu().double() - got
        elements = _elements(gradient)
        rows += [gradient.flatten()[element] for element in elements]
        errors.append(error.flatten()[elements])
    if not errors or not torch.cat(errors).isfinite().all():
        return None
    return Equations(values, jacobians(rows, values), torch.cat(errors))


def _elements(gradient: Tensor) -> list[int]:
    """Places of the elements of a small gradient, and of some of a large one."""
    size = gradient.numel()
    return sorted(
        {n * size // MAX_ELEMENTS for n in range(MAX_ELEMENTS)} if size > MAX_ELEMENTS else set(range(size))
    )
