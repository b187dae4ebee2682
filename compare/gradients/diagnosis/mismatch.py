"""Mismatches: outputs and gradients of ours that are wrong in one variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.numbers import as_real
from compare.gradients.run_variant import OUTPUT, RunResult
from compare.gradients.variants import Variant, incoming_gradient

# Values of Mismatch.message, or how it begins, where there are no two tensors of one shape and dtype to compare.
NO_GRADIENT, NO_OUTPUT, WRONG_DTYPE = "no gradient is returned", "this output is not returned", "got dtype"

MAX_SQUARED = 1e150  # squares of larger numbers overflow

# incoming(n, output) is the incoming gradient of output n.
Incoming = Callable[[int, Tensor], Tensor]

# rerun_native(incoming, inputs=None) gives native's float64 outputs and gradients for other incoming gradients, and
# for other inputs if there are any.
RerunNative = Callable[..., dict[str, Tensor | None]]


@dataclass(frozen=True)
class Mismatch:
    """An output or a gradient that is wrong in one variant.

    Attributes:
        quantity: name of the output or gradient.
        ours, oracle: the two tensors in float64; None where there is none.
        wrong: mask of the elements that are beyond the tolerance and that no convention explains.
        tolerance: largest error of an element that is allowed.
        inputs: the variant's input values in float64.
        run: the run of ours.
        message: what prevented a comparison of numbers, if anything.
        draw: added to the seed of the incoming gradients, in a further draw.
    """

    quantity: str
    variant: Variant
    ours: Tensor | None
    oracle: Tensor | None
    wrong: Tensor | None
    tolerance: float
    inputs: dict[str, Tensor]
    run: RunResult
    message: str = ""
    draw: int = 0

    @property
    def is_output(self) -> bool:
        """True for an output, False for a gradient."""
        return self.quantity.startswith(OUTPUT)

    @property
    def has_complex_numbers(self) -> bool:
        """True if an input, an output or a gradient is complex; then ``ours`` and ``oracle`` may be pairs."""
        return any(t.is_complex() for t in (*self.inputs.values(), *self.run.values.values()) if t is not None)

    @property
    def noun(self) -> str:
        """ "output" or "gradient"."""
        return OUTPUT if self.is_output else "gradient"

    @property
    def input_name(self) -> str:
        """Name of the input whose gradient this is."""
        return self.quantity.removeprefix("gradient of ")

    @property
    def batch_size(self) -> int:
        """Length of the output's first dimension, or of the first input's if the output has no dimension."""
        output = self.run.values.get(OUTPUT)
        if output is not None and output.dim():
            return len(output)
        first = next((value for value in self.inputs.values() if value.dim()), None)
        return len(first) if first is not None else 1

    def equals(self, candidate: Tensor | None) -> bool:
        """Return True if ours equals ``candidate`` up to rounding."""
        if candidate is None:
            return False
        return equal_up_to_rounding(self.ours, as_real(candidate).to(self.ours), 4 * self.tolerance)

    @property
    def rounding_error(self) -> float:
        """More than the largest error with which something :meth:`equals` ours."""
        largest = 0.0 if self.ours is None else float(self.ours.abs().nan_to_num(posinf=0.0).max())
        return 4 * self.tolerance + 1e-8 * largest

    def incoming(self, seed: int) -> Incoming:
        """Return the incoming gradients of this mismatch's run."""
        return lambda n, output: incoming_gradient(output, self.variant, seed + self.draw + n)


def equal_up_to_rounding(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Return True if no element differs by more than ``tolerance`` or 1e-9 of the largest, and not all are 0.

    Infinities and NaN must be the same in both, and some element must be finite.
    """
    if a.shape != b.shape or not a.numel():
        return False
    error = float((a - b).abs().max())
    if math.isfinite(error):  # then everything is finite; the shorter way, since this is asked thousands of times
        largest = float(b.abs().max())
        return error <= max(tolerance, 1e-9 * largest) and largest > 0
    finite = a.isfinite() & b.isfinite()
    if not bool((finite | (a == b) | (a.isnan() & b.isnan())).all()) or not finite.any():
        return False
    largest = float(b[finite].abs().max())
    return bool(torch.all((a - b).abs()[finite] <= max(tolerance, 1e-9 * largest))) and largest > 0


def solve_least_squares(columns: Tensor, target: Tensor) -> Tensor | None:
    """Factors of ``columns`` whose sum is nearest to ``target``; None if a number is too large for the solution."""
    if not columns.numel() or not columns.isfinite().all() or not target.isfinite().all():
        return None
    if max(float(columns.abs().max()), float(target.abs().max())) > MAX_SQUARED:
        return None
    return torch.linalg.lstsq(columns, target, driver="gelsd").solution
