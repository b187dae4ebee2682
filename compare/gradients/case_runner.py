"""The runs of one case in all variants, and the mismatches between ours and native in them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compare.case import Case, CaseError
from compare.gradients.diagnosis.mismatch import NO_GRADIENT, NO_OUTPUT, WRONG_DTYPE, Mismatch, RerunNative
from compare.gradients.measure import EQUAL, REFUSED, WRONG, Row, measure
from compare.gradients.run_variant import OUTPUT, RunResult, run_variant
from compare.gradients.tolerance import Sensitivity, measure_sensitivity
from compare.gradients.variants import Variant, incoming_gradient, round_inputs

Values = dict[str, Tensor | None]


@dataclass(frozen=True)
class ComparedTensors:
    """Ours and the oracle of one quantity, both in float64, in one variant."""

    variant: Variant
    status: str
    ours: Tensor
    oracle: Tensor


@dataclass(frozen=True)
class _Oracle:
    """Native's float64 results for one set of input values, with what is derived from them."""

    inputs: dict[str, Tensor]
    values: Values
    sensitivities: dict[str, Sensitivity]
    conventions: dict[str, Values]


class CaseRunner:
    """Run one case variant by variant. Oracles are cached: variants with the same values share one."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self.case, self.seed = case, seed
        self.inputs = case.inputs(seed)
        self.mismatches: list[Mismatch] = []
        self.examples: dict[str, ComparedTensors] = {}
        self._oracles: dict[Any, _Oracle] = {}
        self._float64 = Variant(device=device)
        floating = [value for value in self.inputs.values() if value.is_floating_point()]
        if not floating:
            raise CaseError(f"{case.name}: expected a floating-point tensor from make_inputs, got none")
        oracle = self._oracle(self._float64)
        self._input_dims = [value.dim() for value in floating]
        self._output_dims = [
            v.dim() for name, v in oracle.values.items() if name.startswith(OUTPUT) and v is not None
        ]

    def has_layouts_of(self, variant: Variant) -> bool:
        """Return True if some tensor can have the variant's layouts; channels_last, say, needs four dimensions."""
        min_dims = {"contiguous": 0, "channels_last": 4, "transposed": 2, "expanded": 2}
        for layout, dims in ((variant.layout, self._input_dims), (variant.gradient_layout, self._output_dims)):
            exactly_four = layout == "channels_last"
            if layout != "contiguous" and not any(d == 4 if exactly_four else d >= min_dims[layout] for d in dims):
                return False
        return True

    def rows(self, variant: Variant) -> list[Row]:
        """Run ours and native in one variant; return a row for each output and gradient, and note the mismatches."""
        oracle = self._oracle(variant)
        native = run_variant(self.case.native, oracle.inputs, variant, self.seed)
        if native.error is not None:
            return [Row(self.case.name, OUTPUT, variant, REFUSED, message=_first_line(native.error))]
        ours = run_variant(self.case.ours, oracle.inputs, variant, self.seed)
        if ours.error is not None:
            return [self._error_row(variant, ours, oracle)]
        return [
            self._row(name, variant, ours, native, oracle) for name in dict.fromkeys((*oracle.values, *ours.values))
        ]

    def native_rerunner(self, variant: Variant) -> RerunNative:
        """Return a function that reruns native in float64 with other incoming gradients, or with other inputs."""
        own_inputs = self._oracle(variant).inputs
        return lambda gradients, inputs=None: self._run_native(inputs or own_inputs, variant, gradients).values

    def find_side_effects(self) -> dict[str, str]:
        """Run ours twice; return the kind of finding for each modified argument and each value that differs."""
        oracle = self._oracle(self._float64)
        first, second = (run_variant(self.case.ours, oracle.inputs, self._float64, self.seed) for _ in range(2))
        side_effects = {}
        for name in first.modified:
            is_gradient = name.startswith("the incoming")
            side_effects[name] = "changes the incoming gradient" if is_gradient else "changes its input"
        for name, value in first.values.items():
            repeated = second.values.get(name)
            if first.error is None and second.error is None and value is not None and repeated is not None:
                difference = (value.double() - repeated.double()).abs().nan_to_num(0.0)
                largest = float(difference.max()) if value.numel() else 0.0
                if largest > oracle.sensitivities.get(name, Sensitivity()).max_change:
                    side_effects[name] = "not repeatable"
        return side_effects

    def _oracle(self, variant: Variant) -> _Oracle:
        expanded = variant.layout == "expanded", variant.gradient_layout == "expanded"
        key = (variant.dtype, variant.data, *expanded)
        if key not in self._oracles:
            inputs = round_inputs(self.inputs, variant)
            values = self._run_native(inputs, variant).values
            sensitivities = measure_sensitivity(self.case.native, inputs, values, variant, self.seed, self.case.kinks)
            conventions = {
                name: self._run_native(inputs, variant, function=function).values
                for name, function in self.case.conventions.items()
            }
            self._oracles[key] = _Oracle(inputs, values, sensitivities, conventions)
        return self._oracles[key]

    def _run_native(
        self,
        inputs: dict[str, Tensor],
        variant: Variant,
        gradients: Callable[[int, Tensor], Tensor] | None = None,
        function: Callable[..., Any] | None = None,
    ) -> RunResult:
        """Run native, or ``function`` in its place, in float64 on the values that the variant's dtype holds."""
        if gradients is None:
            gradients = lambda n, output: incoming_gradient(output, variant, self.seed + n)  # noqa: E731
        result = run_variant(function or self.case.native, inputs, self._float64, self.seed, gradients)
        if result.error is not None:
            error = f"{type(result.error).__name__}: {result.error}"
            raise CaseError(f"{self.case.name}: native raises in float64: {error}") from result.error
        if not any(
            name.startswith(OUTPUT) and v.is_floating_point() for name, v in result.values.items() if v is not None
        ):
            raise CaseError(f"{self.case.name}: expected a floating-point tensor from native, got none")
        return result

    def _row(self, name: str, variant: Variant, ours: RunResult, native: RunResult, oracle: _Oracle) -> Row:
        got, native_value, expected = ours.values.get(name), native.values.get(name), oracle.values.get(name)
        if expected is None and got is not None and name in oracle.values:  # native has no gradient: the same as 0
            expected, native_value = torch.zeros_like(got, dtype=torch.float64), torch.zeros_like(got)
        if got is None and expected is not None and name in ours.values and not expected.any():
            got = torch.zeros_like(expected, dtype=variant.dtype)  # ours has no gradient: the same as 0
        message = _obstacle(name, got, native_value, expected)
        if got is None and expected is None:
            return Row(self.case.name, name, variant, EQUAL)
        if message:
            self.mismatches.append(Mismatch(name, variant, got, expected, None, 0.0, oracle.inputs, ours, message))
            return Row(self.case.name, name, variant, WRONG, message=message)
        if not expected.is_floating_point():
            wrong = (got != expected).cpu()
            status = WRONG if wrong.any() else EQUAL
            row = Row(self.case.name, name, variant, status, got.numel(), unexplained=int(wrong.sum()))
        else:
            conventions = {
                key: values[name] for key, values in oracle.conventions.items() if values.get(name) is not None
            }
            row, wrong = measure(
                self.case.name, name, variant, got,
                native_value if native_value is not None else torch.zeros_like(got), expected,
                oracle.sensitivities.get(name, Sensitivity()), conventions, self.case.kinks,
            )  # fmt: skip
        got, expected = got.double().cpu(), expected.double().cpu()
        if row.status == WRONG:
            self.mismatches.append(Mismatch(name, variant, got, expected, wrong, row.tolerance, oracle.inputs, ours))
        if self._is_better_example(name, row):
            self.examples[name] = ComparedTensors(variant, row.status, got, expected)
        return row

    def _is_better_example(self, name: str, row: Row) -> bool:
        """True for the first wrong row; without one, for contiguous float32, in which errors are visible."""
        previous = self.examples.get(name)
        if row.status == WRONG:
            return previous is None or previous.status != WRONG
        is_plain = Variant(row.variant.dtype, device=row.variant.device) == row.variant
        return is_plain and (previous is None or (previous.status != WRONG and row.variant.dtype is torch.float32))

    def _error_row(self, variant: Variant, ours: RunResult, oracle: _Oracle) -> Row:
        """Row of a run in which ours raised; its quantity is the gradient whose shape autograd rejected, if any."""
        quantity = OUTPUT if OUTPUT not in ours.values else "backward"
        for name, gradient in ours.rejected_gradients.items():
            if oracle.values.get(name) is not None and not _sums_to(gradient.shape, oracle.values[name].shape):
                quantity = name
                break
        got, expected = ours.rejected_gradients.get(quantity), oracle.values.get(quantity)
        message = _first_line(ours.error)
        self.mismatches.append(Mismatch(quantity, variant, got, expected, None, 0.0, oracle.inputs, ours, message))
        return Row(self.case.name, quantity, variant, WRONG, message=message)


def _obstacle(name: str, got: Tensor | None, native: Tensor | None, expected: Tensor | None) -> str:
    """Return what prevents a comparison of numbers: a missing tensor, another shape or dtype; "" if nothing does."""
    if expected is None and got is not None:
        return "native has no such output"
    if got is None and expected is not None:
        return NO_GRADIENT if name.startswith("gradient") else NO_OUTPUT
    if got is None or expected is None:
        return ""
    if got.shape != expected.shape:
        return f"got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if native is not None and got.dtype != native.dtype:
        names = [str(t.dtype).removeprefix("torch.") for t in (got, native)]
        return f"{WRONG_DTYPE} {names[0]}, expected {names[1]}"
    return ""


def _sums_to(shape: torch.Size, target: torch.Size) -> bool:
    """Return True if autograd would silently sum a gradient of ``shape`` to ``target``."""
    try:
        return torch.broadcast_shapes(shape, target) == shape
    except RuntimeError:
        return False


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 160) if lines else ''}"
