"""Values that expressions of backward must have if all gradients are to be right, from backward's own derivatives.

The gradients that backward returns are functions of the value of each of its expressions. One run gives their
derivatives, by autograd. Where these have full rank, and the function is affine, one value alone makes all right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.run_variant import gradient_name
from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.expected_values import ExpectedValue
from compare.gradients.source_changes.places import Place
from compare.gradients.source_changes.recorded_values import RECORD, builtin, recording_code

MAX_ELEMENTS = 150  # of a value in all steps of a loop, and of a gradient that is differentiated
MIN_SINGULAR = 1e-8  # of the largest singular value: a smaller one leaves the value open
RESIDUAL = 1e-7  # of the largest error, after an exact solution

Values = dict[int, list[Tensor]]  # by the number of the expression, one after the other


def required_values(
    places: Sequence[Place], runs: EditedRuns, targets: Sequence[Mismatch]
) -> Iterator[ExpectedValue]:
    """Expressions with the only value that makes every gradient right, in the order of the places."""
    by_name = {target.quantity: target for target in targets}
    if not runs.backward_is_repeatable or any(t.ours is None or t.oracle is None for t in targets):
        return
    numbers, values, gradients = _run(places, runs)
    rows: list[Tensor] = []
    errors: list[Tensor] = []
    for name, gradient in gradients.items():
        elements, target = _elements(gradient), by_name.get(gradient_name(name))
        error = torch.zeros(gradient.shape, dtype=torch.float64)
        if target is not None and target.ours is not None and target.oracle is not None:
            error = target.oracle.cpu() - target.ours.cpu().double()
        if error.shape != gradient.shape or not error.isfinite().all():
            return
        rows += [gradient.flatten()[element] for element in elements]
        errors.append(error.flatten()[elements])
    jacobians = _jacobians(rows, values)
    for place in places:
        known = [jacobians.get(numbers.get(id(site), -1)) for site in place.sites]
        size = sum(value.numel() for value in place.present)
        if any(each is None or each.shape[1] != size for each in known):
            continue
        change = _only_solution(sum(known), torch.cat(errors))  # type: ignore[arg-type]
        if change is not None:
            parts = change.split([value.numel() for value in place.present])
            value = [v.cpu() + part.view(v.shape) for v, part in zip(place.present, parts, strict=True)]
            yield ExpectedValue(place, value, quantities=frozenset(by_name))


def _run(places: Sequence[Place], runs: EditedRuns) -> tuple[dict[int, int], Values, dict[str, Tensor]]:
    """Numbers of the expressions by the ids of their sites, their values, and the gradients as functions of them."""
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
    values: Values = {}

    def record(n: int, value: Any) -> Any:
        torch.set_grad_enabled(True)  # backward of a function that is once_differentiable has turned it off
        if not isinstance(value, Tensor) or value.dtype is not torch.float64 or value.numel() > MAX_ELEMENTS:
            return value
        own = (value if value.requires_grad else value.detach().requires_grad_()).clone()
        values.setdefault(n, []).append(own)
        return own

    with builtin(RECORD, record):
        return numbers, values, runs.attached_gradients(codes)


def _is_changed_in_place(site: Site) -> bool:
    """True for the tensor of a method that changes it, such as ``add_``: a copy would change instead."""
    parent = site.ancestors[-1]
    return isinstance(parent, ast.Attribute) and parent.attr.endswith("_")


def _elements(gradient: Tensor) -> list[int]:
    """Places of the elements of a small gradient, and of some of a large one."""
    size = gradient.numel()
    return sorted(
        {n * size // MAX_ELEMENTS for n in range(MAX_ELEMENTS)} if size > MAX_ELEMENTS else set(range(size))
    )


def _jacobians(rows: Sequence[Tensor], values: Values) -> dict[int, Tensor]:
    """Derivatives of numbers by the values of each expression in all steps."""
    every = [value for own in values.values() for value in own]
    columns = [torch.zeros(len(rows), value.numel(), dtype=torch.float64) for value in every]
    for n, row in enumerate(rows):
        if row.requires_grad:
            for column, part in zip(
                columns, torch.autograd.grad(row, every, retain_graph=True, allow_unused=True), strict=True
            ):
                if part is not None:
                    column[n] = part.detach().cpu().flatten()
    in_order = iter(columns)
    return {number: torch.cat([next(in_order) for _ in own], 1) for number, own in values.items()}


def _only_solution(jacobian: Tensor, errors: Tensor) -> Tensor | None:
    """The addition to a value that makes all right; None if there is none, or more than one."""
    if jacobian.shape[1] > jacobian.shape[0] or not jacobian.isfinite().all():
        return None
    u, s, vh = torch.linalg.svd(jacobian, full_matrices=False)
    if not len(s) or s[-1] <= MIN_SINGULAR * s[0]:
        return None
    change = vh.mT @ ((u.mT @ errors) / s)
    return change if ((jacobian @ change - errors).abs() <= RESIDUAL * errors.abs().max()).all() else None
