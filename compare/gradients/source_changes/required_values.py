"""Values that expressions of backward must have if all gradients are to be right, from backward's own derivatives.

The gradients that backward returns are functions of the value of each of its expressions. One run gives their
derivatives, by autograd. Where these have full rank, and the function is affine, one value alone makes all right. The
few elements of a sum leave the value of a summand open; but if it is the same for every incoming gradient, several
incoming gradients tell it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from compare.gradients.diagnosis.probe import Probe
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.equations import (
    Equations,
    have_same_values,
    only_solution,
    stacked,
)
from compare.gradients.source_changes.expected_values import ExpectedValue
from compare.gradients.source_changes.places import Place
from compare.gradients.source_changes.recorded_equations import RecordedEquations
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin

MAX_RUNS, MAX_OPEN = 60, 48  # further incoming gradients; elements of a value that they are to tell


def required_values(
    places: Sequence[Place], recorded: RecordedEquations, probe: Probe | None = None
) -> Iterator[ExpectedValue]:
    """Expressions with the only value that makes every gradient right, in the order of the places."""
    first = recorded.first
    if first is None:
        return
    numbered = [(place, recorded.numbers(place)) for place in places]
    further = list(_further_equations(first, numbered, recorded, probe))
    for place, sites in numbered:
        change = only_solution(stacked([first], sites), first.errors)
        if change is None and further and all(have_same_values(first, each, sites) for each in further):
            every = [first, *further]
            change = only_solution(stacked(every, sites), torch.cat([each.errors for each in every]))
        sizes = [value.numel() for value in place.present]
        if change is not None and len(change) == sum(sizes):  # otherwise not all of its values are known
            value = _with_additions(place, change.split(sizes), recorded.runs)
            if value is not None:
                yield ExpectedValue(place, value, quantities=frozenset(recorded.expected))


def _with_additions(place: Place, additions: Sequence[Tensor], runs: EditedRuns) -> list[Tensor] | None:
    """The values with what must be added to each; in a loop, each depends on the earlier ones. None without one."""
    if len(additions) == 1:
        return [place.present[0].cpu() + additions[0].view(place.present[0].shape)]
    left = cycle(additions)
    values: list[Tensor] = []

    def add(_: int, value: Tensor) -> Tensor:
        values.append(value + next(left).view(value.shape).to(value))
        return values[-1]

    codes = place.code_with_changed_value
    if codes is None or place.more:
        return None
    with builtin(INSTEAD, add):
        runs.run_edited(codes)
    return [value.cpu() for value in values] if len(values) == len(additions) else None


def _further_equations(
    first: Equations,
    places: Sequence[tuple[Place, list[int]]],
    recorded: RecordedEquations,
    probe: Probe | None,
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
        right = probe.run_native(recorded.runs.first.inputs, incoming)
        known = {name: value for name, value in (right or {}).items() if name in recorded.expected}
        equations = None if right is None else recorded.of(known, incoming, still_open)
        if equations is None:
            return
        yield equations
