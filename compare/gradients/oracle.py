"""The expected values of a case: native's outputs and gradients in float64, for every set of input values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compare.case import Case, CaseError
from compare.gradients.finite_differences import finite_differences
from compare.gradients.numbers import as_real, has_gradient
from compare.gradients.run_variant import OUTPUT, RunResult, gradient_name, run_variant
from compare.gradients.tolerance import SensitivityTrials
from compare.gradients.variants import SECOND_DRAW, Variant, incoming_gradient, round_inputs

Values = dict[str, Tensor | None]
Incoming = Callable[[int, Tensor], Tensor | None]
UNCHANGED = 0.75  # the second draw multiplies an input by this if make_inputs always returns the same values


@dataclass
class Oracle:
    """Native's float64 results for one set of input values.

    Attributes:
        inputs: the inputs in double precision.
        values: outputs and gradients by name; complex ones as pairs of real numbers.
        trials: how the values change under perturbations.
        conventions: the values of each convention.
        errors: bounds on the errors of gradients by finite differences; infinite where one is not determined.
    """

    inputs: dict[str, Tensor]
    values: Values
    trials: SensitivityTrials
    conventions: dict[str, Values]
    errors: dict[str, Tensor]
    has_more_trials: bool = False

    def add_trials(self) -> None:
        """Perturb more often, once: something is about to be called wrong."""
        if not self.has_more_trials:
            self.trials.add()
            self.has_more_trials = True


class Oracles:
    """Oracles of one case. Variants with the same values share one.

    Without a native function, ours takes its place, and the gradients in ``checked_dtypes`` are finite differences.
    Once these are compared, ours in float64 is the oracle of the other dtypes.
    """

    def __init__(self, case: Case, device: str, seed: int, checked_dtypes: tuple[torch.dtype, ...]) -> None:
        self.case, self.seed, self.checked_dtypes = case, seed, checked_dtypes
        self.trusted = case.native or case.ours
        self.float64 = Variant(device=device)
        self.inputs = case.inputs(seed)
        self._second_inputs: dict[str, Tensor] | None = None
        self._oracles: dict[Any, Oracle | CaseError] = {}

    def __call__(self, variant: Variant) -> Oracle:
        """Return the oracle of the variant's values.

        Raises:
            CaseError: native raises for these values, or returns no floating-point or complex number.
        """
        expanded = variant.layout == "expanded", variant.gradient_layout == "expanded"
        key = (variant.dtype, variant.data, *expanded)
        if key not in self._oracles:
            try:
                self._oracles[key] = self._make(variant)
            except CaseError as error:
                self._oracles[key] = error
        oracle = self._oracles[key]
        if isinstance(oracle, CaseError):
            raise oracle
        return oracle

    def _make(self, variant: Variant) -> Oracle:
        try:
            inputs = round_inputs(self._draw(variant), variant)
        except TypeError as error:  # complex inputs in half precision
            raise CaseError(f"{self.case.name}: {error}") from error
        values = self.run_native(inputs, variant).values
        trials = SensitivityTrials(self.trusted, inputs, values, variant, self.seed, self.case.kinks)
        errors: dict[str, Tensor] = {}
        if self.case.native is None and variant.dtype in self.checked_dtypes:
            values, errors = self._differences(values, inputs, self._incoming(variant))
        conventions = {
            name: _as_real(self.run_native(inputs, variant, function=function).values)
            for name, function in self.case.conventions.items()
        }
        return Oracle(inputs, _as_real(values), trials, conventions, errors)

    def _draw(self, variant: Variant) -> dict[str, Tensor]:
        if variant.data != SECOND_DRAW:
            return self.inputs
        if self._second_inputs is None:
            self._second_inputs = self._second_draw()
        return self._second_inputs

    def _second_draw(self) -> dict[str, Tensor]:
        """Draw other inputs. An input that is the same again, such as a weight, is scaled if native allows it."""
        drawn = self.case.inputs(self.seed + 1)
        scaled = {
            name: UNCHANGED * value
            if has_gradient(value) and name in self.inputs and torch.equal(value, self.inputs[name])
            else value
            for name, value in drawn.items()
        }
        try:
            values = self.run_native(round_inputs(scaled, self.float64), self.float64).values.values()
        except CaseError:  # the scaled values are outside of native's domain
            return drawn
        return scaled if all(v is None or bool(as_real(v).isfinite().all()) for v in values) else drawn

    def run_native(
        self,
        inputs: dict[str, Tensor],
        variant: Variant,
        gradients: Incoming | None = None,
        function: Callable[..., Any] | None = None,
    ) -> RunResult:
        """Run native, or ``function`` in its place, in float64 on the values that the variant's dtype holds.

        Raises:
            CaseError: it raises, or returns no floating-point or complex number.
        """
        gradients = gradients or self._incoming(variant)
        result = run_variant(
            function or self.trusted, inputs, self.float64, self.seed, gradients, finds_changes=False
        )
        if result.error is not None:
            error = f"{type(result.error).__name__}: {result.error}"
            name = "a convention" if function is not None else "native" if self.case.native else "the function"
            raise CaseError(f"{self.case.name}: {name} raises in float64: {error}") from result.error
        outputs = [v for name, v in result.values.items() if name.startswith(OUTPUT) and v is not None]
        if not any(has_gradient(output) for output in outputs):
            raise CaseError(f"{self.case.name}: expected a floating-point tensor from native, got none")
        return result

    def rerun(
        self, variant: Variant, gradients: Incoming, inputs: dict[str, Tensor] | None = None
    ) -> tuple[Values, dict[str, Tensor]]:
        """Rerun native on the variant's values with other incoming gradients, or on other inputs.

        Returns:
            the values, and bounds on the errors of those that are finite differences.
        """
        inputs = inputs or self(variant).inputs
        values, errors = self.run_native(inputs, variant, gradients).values, {}
        if self.case.native is None:
            values, errors = self._differences(values, inputs, gradients)
        return _as_real(values), errors

    def _incoming(self, variant: Variant) -> Incoming:
        return lambda n, output: incoming_gradient(output, variant, self.seed + n)

    def _differences(
        self, values: Values, inputs: dict[str, Tensor], gradients: Incoming
    ) -> tuple[Values, dict[str, Tensor]]:
        """Return the values with gradients by finite differences of ours in float64, and bounds on their errors."""

        def incoming(n: int, output: Tensor) -> Tensor:
            gradient = gradients(n, output)
            return torch.zeros_like(output) if gradient is None else gradient

        names = [name for name, value in inputs.items() if has_gradient(value)]
        differences = finite_differences(self.trusted, inputs, incoming, names)
        values, errors = dict(values), {}
        for name, difference in differences.items():
            error = difference.error.unsqueeze(-1) if difference.gradient.is_complex() else difference.error
            errors[gradient_name(name)] = error.expand_as(as_real(difference.gradient))
            values[gradient_name(name)] = difference.gradient.nan_to_num()
        return values, errors


def _as_real(values: Values) -> Values:
    return {name: None if value is None else as_real(value) for name, value in values.items()}
