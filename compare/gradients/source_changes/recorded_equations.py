"""Equations of runs of backward whose expressions are recorded, with their derivatives."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence, Set
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Incoming, Mismatch
from compare.gradients.run_variant import gradient_name
from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.equations import Equations, jacobians
from compare.gradients.source_changes.places import Place
from compare.gradients.source_changes.recorded_values import RECORD, builtin, recording_code

MAX_ELEMENTS = 150  # of a value in all steps of a loop, and of a gradient that is differentiated


class RecordedEquations:
    """Equations of the values of some expressions of backward.

    Attributes:
        runs: those of the function.
        expected: right gradients, by the names of what is wrong.
        first: equations for the incoming gradient of the runs; None where a gradient cannot be compared, and for a
            backward that is not repeatable.
    """

    def __init__(self, places: Sequence[Place], runs: EditedRuns, targets: Sequence[Mismatch]) -> None:
        self.runs = runs
        self.expected = {target.quantity: target.oracle for target in targets if target.oracle is not None}
        self._numbers: dict[int, int] = {}
        self.first: Equations | None = None
        if runs.backward_is_repeatable and len(self.expected) == len(targets):
            self._numbers, self._codes = _recording(places)
            self.first = self.of(self.expected)

    def numbers(self, place: Place) -> list[int]:
        """Numbers of the expressions at a place, for :class:`Equations`; -1 for one that is not recorded."""
        return [self._numbers.get(id(site), -1) for site in place.sites]

    def of(
        self, expected: Mapping[str, Tensor | None], incoming: Incoming | None = None, only: Set[int] | None = None
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
            gradients = self.runs.attached_gradients(self._codes, incoming)
        rows: list[Tensor] = []
        errors: list[Tensor] = []
        elements: dict[str, list[int]] = {}
        for name, gradient in gradients.items():
            right = expected.get(gradient_name(name))
            if right is None and incoming is not None:
                continue
            if gradient.is_complex() or (right is not None and right.shape != gradient.shape):
                return None
            got = gradient.detach().cpu().double()
            error = torch.zeros_like(got) if right is None else right.cpu().double() - got
            own = elements[gradient_name(name)] = _elements(gradient)
            rows += [gradient.flatten()[element] for element in own]
            errors.append(error.flatten()[own])
        if not errors or not torch.cat(errors).isfinite().all():
            return None
        now = torch.stack([row.detach().cpu().double() for row in rows])
        return Equations(values, jacobians(rows, values), torch.cat(errors), now, elements)


def _recording(places: Sequence[Place]) -> tuple[dict[int, int], dict[EditableFunction, CodeType]]:
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


def _elements(gradient: Tensor) -> list[int]:
    """Places of the elements of a small gradient, and of some of a large one."""
    size = gradient.numel()
    return sorted(
        {n * size // MAX_ELEMENTS for n in range(MAX_ELEMENTS)} if size > MAX_ELEMENTS else set(range(size))
    )
