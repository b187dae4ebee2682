"""Gradients that backward would give with other values of an expression, without a run for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor

from compare.gradients.source_changes.equations import stacked
from compare.gradients.source_changes.influence import other_numbers
from compare.gradients.source_changes.places import Place, one_by_one
from compare.gradients.source_changes.recorded_equations import RecordedEquations
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin
from compare.gradients.source_changes.term_shapes import common_shape

AGREEMENT = 1e-7  # of the largest change: a backward that is affine differs by rounding alone


class PredictedGradients:
    """Gradients from the derivatives of one run, where they are affine in the values of an expression.

    Whether they are affine is tried in one run for each expression, in which its numbers have the other sign.
    """

    def __init__(self, recorded: RecordedEquations) -> None:
        self._recorded = recorded
        self._known: dict[tuple[int, int, bool], Tensor | None] = {}

    def with_values(self, place: Place, values: Sequence[Tensor]) -> Mapping[str, Tensor] | None:
        """Elements of the gradients with other values at a place; None where they are not affine in them.

        See :attr:`Equations.elements` for which elements.
        """
        pairs = list(zip(values, place.present, strict=True))
        if not _is_double(place) or any(a.shape != b.shape for a, b in pairs):
            return None
        return self._with_additions(place, [a.double() - b.double() for a, b in pairs], is_factor=False)

    def with_factors(self, place: Place, factors: Sequence[Tensor]) -> Mapping[str, Tensor] | None:
        """The same for each value that there is then, times a factor; None, too, for factors of other shapes."""
        pairs = list(zip(cycle(factors), place.present, strict=False))
        if not _is_double(place) or any(common_shape(a.shape, b.shape) != b.shape for a, b in pairs):
            return None
        return self._with_additions(place, [(a - 1) * b.double() for a, b in pairs], is_factor=True)

    def elements(self, name: str, gradient: Tensor) -> Tensor:
        """Elements of a gradient: those that are predicted."""
        assert self._recorded.first is not None
        return gradient.flatten()[self._recorded.first.elements[name]]

    def _with_additions(
        self, place: Place, additions: Sequence[Tensor], *, is_factor: bool
    ) -> Mapping[str, Tensor] | None:
        # The next value of a loop is computed from the one that has been changed, or does not matter.
        is_factor = is_factor and len(place.present) > 1
        key = (id(place.site), len(place.more), is_factor)
        if key not in self._known:
            self._known[key] = self._jacobian_if_affine(place, is_factor=is_factor)
        jacobian, first = self._known[key], self._recorded.first
        if jacobian is None or first is None:
            return None
        numbers = first.now + jacobian @ _flat(additions)
        return dict(zip(first.elements, numbers.split([len(own) for own in first.elements.values()]), strict=True))

    def _jacobian_if_affine(self, place: Place, *, is_factor: bool) -> Tensor | None:
        first = self._recorded.first
        if first is None:
            return None
        jacobian = stacked([first], self._recorded.numbers(place))
        codes = place.code_with_changed_value if is_factor else place.code_with_value
        if jacobian is None or codes is None or jacobian.shape[1] != sum(v.numel() for v in place.present):
            return None
        present = place.present
        if is_factor:
            factors = [other_numbers(torch.ones_like(value), trial=0) for value in present]
            left = cycle(factors)
            instead = lambda _, value: value * next(left)  # noqa: E731
            additions = [(factor - 1) * value for factor, value in zip(factors, present, strict=True)]
        else:
            others = [other_numbers(value, trial=0) for value in present]
            instead = one_by_one(others, torch.float64)
            additions = [other - value for other, value in zip(others, present, strict=True)]
        with builtin(INSTEAD, instead):
            result = self._recorded.runs.run_edited(codes)
        got = [result.values.get(name) for name in first.elements]
        if result.error is not None or any(value is None for value in got):
            return None
        changed_numbers = torch.cat(
            [self.elements(n, v.cpu().double()) for n, v in zip(first.elements, got, strict=True) if v is not None]
        )
        change = jacobian @ _flat(additions)
        error = (changed_numbers - first.now - change).abs()
        return jacobian if (error <= AGREEMENT * change.abs().max()).all() else None


def _is_double(place: Place) -> bool:
    """True for real numbers in double precision; the derivatives of others are not recorded."""
    return place.present[0].dtype is torch.float64


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.double().cpu().flatten() for value in values])
