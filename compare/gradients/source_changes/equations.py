"""Linear equations of the value that an expression should have: derivatives of the gradients by it, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.source_changes.places import are_equal

MIN_SINGULAR = 1e-8  # of the largest singular value: a smaller one leaves the value open
RESIDUAL = 1e-7  # of the largest error, after an exact solution


@dataclass
class Equations:
    """Derivatives of elements of the gradients by the values of expressions, for one incoming gradient.

    Attributes:
        values: of the expressions, by their numbers, one after the other.
        jacobians: by the same numbers.
        errors: what is missing in the elements.
        now: the elements themselves.
        elements: their places in each gradient, by its name.
    """

    values: dict[int, list[Tensor]]
    jacobians: dict[int, Tensor]
    errors: Tensor
    now: Tensor
    elements: dict[str, list[int]]


def jacobians(rows: Sequence[Tensor], values: Mapping[int, list[Tensor]]) -> dict[int, Tensor]:
    """Derivatives of numbers by the values of each expression in all steps."""
    every = [value for own in values.values() for value in own]
    columns = [torch.zeros(len(rows), value.numel(), dtype=torch.float64) for value in every]
    for n, row in enumerate(rows):
        if not row.requires_grad or not every:
            continue
        parts = torch.autograd.grad(row, every, retain_graph=True, allow_unused=True)
        for column, part in zip(columns, parts, strict=True):
            if part is not None:
                column[n] = part.detach().cpu().flatten()
    in_order = iter(columns)
    return {number: torch.cat([next(in_order) for _ in own], 1) for number, own in values.items()}


def stacked(equations: Sequence[Equations], numbers: Sequence[int]) -> Tensor | None:
    """Derivatives by the common value of several expressions; None if one of them has none."""
    parts = []
    for each in equations:
        own = [each.jacobians.get(number) for number in numbers]
        known = [jacobian for jacobian in own if jacobian is not None]
        if len(known) < len(own) or len({jacobian.shape for jacobian in known}) > 1:
            return None
        parts.append(torch.stack(known).sum(0))
    return torch.cat(parts) if len({part.shape[1] for part in parts}) == 1 else None


def have_same_values(first: Equations, other: Equations, numbers: Sequence[int]) -> bool:
    """True if the expressions do not depend on the incoming gradient."""
    for number in numbers:
        own, others = first.values.get(number, []), other.values.get(number, [])
        if len(own) != len(others) or not all(
            are_equal(a.detach(), b.detach()) for a, b in zip(own, others, strict=True)
        ):
            return False
    return True


def only_solution(jacobian: Tensor | None, errors: Tensor) -> Tensor | None:
    """The addition to a value that makes all right; None if there is none, or more than one."""
    if jacobian is None or jacobian.shape[1] > jacobian.shape[0] or not jacobian.isfinite().all():
        return None
    u, s, vh = torch.linalg.svd(jacobian, full_matrices=False)
    if not len(s) or s[-1] <= MIN_SINGULAR * s[0]:
        return None
    change = vh.mT @ ((u.mT @ errors) / s)
    return change if ((jacobian @ change - errors).abs() <= RESIDUAL * errors.abs().max()).all() else None
