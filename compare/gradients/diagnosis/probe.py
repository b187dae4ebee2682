"""Further runs of ours and native, where a gradient is wrong: other draws, other incoming gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from compare.case import Case, CaseError
from compare.gradients.diagnosis.mismatch import Incoming, Mismatch, RerunNative
from compare.gradients.diagnosis.native_calls import MAX_CALLS, record_calls
from compare.gradients.numbers import as_real, has_gradient
from compare.gradients.run_variant import RunResult, run_variant
from compare.gradients.variants import Variant, incoming_gradient, round_inputs

Values = dict[str, Tensor | None]
SPREAD, SPREAD_DRAW = 3.0, 2
SPREAD_TOLERANCE = 1e-7  # exp of larger numbers loses digits
EVALUATIONS_OF_AN_ELEMENT = 10
MAX_EVALUATIONS = 30_000  # for finite differences, in the searches of one case: some seconds
NUM_DRAWS = 4  # of inputs; claims about values are tested on all of them


@dataclass
class Probe:
    """Ours and native of one case in one variant, on any inputs and with any incoming gradients.

    Attributes:
        rerun_native: outputs and gradients of native in float64.
        right_inputs: inputs whose gradients are right.
        explanations: changes of native that explain a gradient, by kind and statement of the finding.
        jacobians: those that were asked for, by quantity and draw.
        is_output_wrong: True if an output is wrong, which may be why a gradient is.
        native_calls: operations of native that were called in runs of changed native.
        tape_cost: steps that were run in searches on tapes of native's backward.
        evaluations: of the function for finite differences, where there is no native.
    """

    case: Case
    variant: Variant
    seed: int
    rerun_native: RerunNative
    right_inputs: tuple[str, ...] = ()
    is_output_wrong: bool = False
    explanations: dict[tuple[str, str], Any] = field(default_factory=dict)
    jacobians: dict[Any, Any] = field(default_factory=dict)
    native_calls: int = 0
    tape_cost: float = 0.0
    evaluations: int = 0
    _draws: dict[int, dict[str, Tensor] | None] = field(default_factory=dict)
    _mismatches: dict[Any, Mismatch | None] = field(default_factory=dict)

    @cached_property
    def num_operations(self) -> int:
        """Number of operations in a run of native, those of large tensors counted several times; 1 without native."""
        inputs = self.draw(0)
        if self.case.native is None or inputs is None:
            return 1
        return sum(call.cost for call in record_calls(self.case.native, inputs)) or MAX_CALLS

    @cached_property
    def evaluations_of_a_run(self) -> int:
        """Number of evaluations for the finite differences of one incoming gradient, about; 0 with native."""
        inputs = self.draw(0)
        if self.case.native is not None or inputs is None:
            return 0
        return EVALUATIONS_OF_AN_ELEMENT * sum(value.numel() for value in inputs.values() if has_gradient(value))

    def affordable_runs(self, evaluations: int = MAX_EVALUATIONS) -> float:
        """Number of runs of native up to a limit. A limit in seconds would make results differ."""
        left = max(0, evaluations - self.evaluations)
        return left // self.evaluations_of_a_run if self.evaluations_of_a_run else math.inf

    def run_ours(self, inputs: dict[str, Tensor], incoming: Incoming | None = None) -> RunResult:
        """Run ours in the variant."""
        return run_variant(self.case.ours, inputs, self.variant, self.seed, incoming, finds_changes=False)

    def run_native(self, inputs: dict[str, Tensor], incoming: Incoming) -> Values | None:
        """Run native in float64; None if it raises."""
        self.evaluations += self.evaluations_of_a_run
        try:
            return self.rerun_native(incoming, inputs)
        except CaseError:  # native has no value there, so nothing can be asked there
            return None

    def draw(self, n: int) -> dict[str, Tensor] | None:
        """Draw inputs anew; None if the case cannot."""
        if n not in self._draws:
            try:
                self._draws[n] = round_inputs(self.case.inputs(self.seed + n), self.variant)
            except CaseError:  # the first draw succeeded; without another one nothing is confirmed
                self._draws[n] = None
        return self._draws[n]

    def incoming(self, n: int) -> Incoming:
        """Incoming gradients of draw ``n``."""
        return lambda k, output: incoming_gradient(output, self.variant, self.seed + k + 7919 * n)

    def mismatch(self, first: Mismatch, n: int) -> Mismatch | None:
        """The same quantity in draw ``n``; its mask of wrong elements may be empty. None if a run raises."""
        key = (first.quantity, n)
        if key not in self._mismatches:
            inputs = self.draw(n)
            made = None if inputs is None else self.compare(first, inputs, self.incoming(n), n)
            self._mismatches[key] = made
        return self._mismatches[key]

    def spread(self, first: Mismatch) -> Mismatch | None:
        """The same quantity where all inputs of both signs are ``SPREAD`` times as large; None if that has no value.

        A mask of ``x > -0.5`` is one of all elements only as long as all x are near 0.
        """
        drawn = self.draw(SPREAD_DRAW)
        if drawn is None:
            return None
        inputs = dict(drawn)
        for name, value in drawn.items():
            if value.is_floating_point() and bool((value < 0).any() and (value > 0).any()):
                inputs[name] = SPREAD * value
        made = self.compare(first, inputs, self.incoming(SPREAD_DRAW), SPREAD_DRAW)
        if made is None or not bool(made.ours.isfinite().all() and made.oracle.isfinite().all()):
            return None
        return replace(made, tolerance=max(made.tolerance, SPREAD_TOLERANCE * largest(made.oracle)))

    def compare(self, first: Mismatch, inputs: dict[str, Tensor], incoming: Incoming, n: int = 0) -> Mismatch | None:
        """Ours beside native's for other inputs and incoming gradients; None if there are no two tensors."""
        native = self.run_native(inputs, incoming)
        run = self.run_ours(inputs, incoming)
        expected = (native or {}).get(first.quantity)
        got = run.values.get(first.quantity)
        if run.error is not None or expected is None or got is None or first.oracle is None:
            return None
        got, expected = as_real(got).double().cpu(), expected.double().cpu()
        if got.shape != expected.shape:
            return None
        tolerance = 4 * relative_tolerance(first) * largest(expected)
        difference = (got - expected).abs()
        same = (got == expected) | (got.isnan() & expected.isnan())
        wrong = ~(difference <= tolerance) & ~same
        return Mismatch(
            first.quantity, first.variant, got, expected, wrong, tolerance / 4, inputs, run,
            draw=7919 * n,
        )  # fmt: skip


def relative_tolerance(mismatch: Mismatch) -> float:
    """Tolerance of a mismatch, relative to its largest expected number; at least 1e-9."""
    size = largest(mismatch.oracle)
    return max(1e-9, mismatch.tolerance / size) if size else 1e-9


def largest(tensor: Tensor) -> float:
    """Largest finite absolute value; 0 without one."""
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
