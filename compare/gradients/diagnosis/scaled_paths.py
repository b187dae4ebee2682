"""Paths of a gradient in native that count too much, too little or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import solve_least_squares
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.native_paths import NativePaths, Path
from compare.gradients.diagnosis.wording import format_number


def find_scaled_paths(search: NativePaths) -> Iterator[Finding]:
    difference = search.mismatch.ours - search.mismatch.oracle
    later: list[tuple[Path, float, NativeChange]] = []
    for path in search.paths:
        omitted = NativeChange(path.call.site, path.position, changed.omitted)
        without = search.gradient(omitted)
        if without is None:
            continue
        part = search.mismatch.oracle - without
        path.part = part
        square = float((part * part).sum())
        if not square:
            continue
        weight = 1 + float((difference * part).sum()) / square
        weight = 0.0 if abs(weight) < 1e-9 else weight
        if not search.mismatch.equals(search.mismatch.oracle + (weight - 1) * part):
            continue
        change = NativeChange(path.call.site, path.position, changed.scaled(weight))
        if not search.confirms_weights({path.position: (path, weight)}):
            continue
        if search.changes_right_gradient(change):
            later.append((path, weight, change))
            continue
        search.change = change
        yield _weight_finding(search, path, weight)
    for path, weight, change in later:
        search.change = change
        yield _weight_finding(search, path, weight)


def find_single_steps(search: NativePaths) -> Iterator[Finding]:
    """A path in a loop that counts in the first or the last step alone."""
    for path in search.paths:
        count = search.sites[path.call.site]
        for number, step in ((count - 1, "last"), (0, "first")) if count > 2 else ():

            def derivative(call: Call, flat: list[Any], position: int, number: int = number) -> Tensor | None:
                return changed.scaled(1.0)(call, flat, position) if call.iteration == number else None

            if search.explains(NativeChange(path.call.site, path.position, derivative)):
                statement = (
                    f"the part of the derivative through {path.words} counts in the {step} step of the loop alone"
                )
                yield Finding("missing term", search.mismatch.quantity, f"{statement}: the other steps are missing")


def _weight_finding(search: NativePaths, path: Path, weight: float) -> Finding:
    quantity = search.mismatch.quantity
    if weight == 0:
        statement = f"the part of the derivative through {path.words} is missing, as if it were a constant"
        return Finding("missing term", quantity, statement, "equals native's gradient with that path cut")
    name = name_factor(weight, search.mismatch, None)
    name = f" ({name})" if name else ""
    if abs(weight + 1) < 1e-6:
        statement = f"the part of the derivative through {path.words} has the wrong sign"
    else:
        statement = f"the part of the derivative through {path.words} is {format_number(weight)} times as large"
        statement += f" as it should be{name}"
    return Finding("factor of one term", quantity, statement, "all other parts are right")


def find_pairs_of_paths(search: NativePaths) -> Iterator[Finding]:
    """Two paths that are both missing, such as mean and variance."""
    search.change = None
    parts = [path for path in search.paths if path.part is not None and path.part.any()]
    difference = search.mismatch.ours - search.mismatch.oracle
    verbs = {0: "is missing", -1: "has the wrong sign", 2: "counts twice"}
    findings: list[tuple[int, Finding]] = []
    for a, b in itertools.combinations(parts[:40], 2):
        columns = torch.stack([a.part.flatten(), b.part.flatten()], 1)
        solution = solve_least_squares(columns, difference.flatten().unsqueeze(1))
        if solution is None:
            continue
        weights = [1 + float(w) for w in solution.flatten()]
        same = abs(weights[0] - weights[1]) <= 1e-6 * abs(weights[0])
        same = same and min(abs(weights[0] - other) for other in (1, -1)) > 1e-6  # two wrong signs are a transpose
        name = name_factor(weights[0], search.mismatch) if same else ""
        if name and search.mismatch.equals(search.mismatch.oracle + (columns @ solution).reshape(difference.shape)):
            if search.confirms_weights({0: (a, weights[0]), 1: (b, weights[0])}):
                statement = f"the parts of the derivative through {a.words} and through {b.words} are both"
                statement += f" {format_number(weights[0])} times as large as they should be ({name})"
                findings.append((3, Finding("factor of one term", search.mismatch.quantity, statement)))
            continue
        if any(min(abs(w - simple) for simple in verbs) > 1e-6 for w in weights):
            continue
        first, second = (round(w) for w in weights)
        if not search.mismatch.equals(search.mismatch.oracle + (columns @ solution).reshape(difference.shape)):
            continue
        if 0 not in (first, second) or not search.confirms_weights({0: (a, first), 1: (b, second)}):
            continue
        statement = f"the part of the derivative through {a.words} {verbs[first]}"
        statement += f", and the one through {b.words} {verbs[second]}"
        findings.append((abs(first) + abs(second), Finding("missing term", search.mismatch.quantity, statement)))
    yield from [finding for _, finding in sorted(findings, key=lambda pair: pair[0])][:1]
