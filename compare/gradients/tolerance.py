"""The tolerance of a comparison: how far from the float64 oracle a correct result may be. It is measured, not chosen.

The tolerance has two parts. The first is twice the error that native PyTorch makes in the same dtype. The second is
the change of native's float64 result when its inputs, or the results of its operations, are perturbed by a few
rounding errors: a result that is exact for slightly different inputs is as good as any. The second part is needed
because native's error can be 0 by chance, when a sum happens to be right to the last digit.

Where rounding carries a value across a kink (a ReLU's 0, the boundary of a quantiser's step, the second largest
element), the result jumps. Two perturbations with opposite signs show this: smooth changes are opposite too, and
jumps are not. A jump belongs to its element: it is the tolerance of that element, and of no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.gradients.numbers import as_real, has_gradient
from compare.gradients.perturbations import (
    ENLARGEMENT_KINKS,
    PerturbOperations,
    perturb_by_position,
    perturb_by_value,
)
from compare.gradients.run_variant import output_name, run_variant
from compare.gradients.variants import Variant, incoming_gradient

ROUNDINGS = (
    4  # perturbation in the tolerance, in unit roundoffs; sums and products in a correct function round as often
)
# Native's own error in float64 cannot be measured, so only the second part remains, and it is chosen generously: it
# stays eight digits below the smallest mistake that compare promises to find.
ROUNDINGS_FLOAT64 = 64
# Perturbations are larger than that, and smooth changes are scaled down: whatever a rounding error can carry across a
# kink, one of them carries across too, with near certainty.
ENLARGEMENT = ENLARGEMENT_KINKS // 2
INPUT_PAIRS, OPERATION_PAIRS = 2, 1  # pairs of perturbations with opposite signs, of inputs and of operations
# Further pairs before a result is called wrong. Of one number, twelve normal draws are all below a seventh of their
# spread once in 10**11 times.
MORE_INPUT_PAIRS, MORE_OPERATION_PAIRS = 12, 4
# A change is a jump if the two changes of a pair do not cancel: their sum exceeds a quarter of the larger one, and a
# quarter of the perturbation's relative size. The curvature of a smooth function leaves less.
JUMP = 0.25


@dataclass(frozen=True)
class Sensitivity:
    """Change of one quantity under small perturbations of the inputs.

    Attributes:
        max_change: largest change of an element that does not jump, for a perturbation of the tolerance's size.
        scale: that change divided by the relative perturbation: the size of the oracle's largest element, or of the
            terms that cancel in it.
        jumps: mask of the elements that a perturbation carries across a kink; None if there are none.
        spread: largest change of each element; None if no element jumps.
        norm_change: norm of the change of the elements that jump.
    """

    max_change: float = 0.0
    scale: float = 0.0
    jumps: Tensor | None = None
    spread: Tensor | None = None
    norm_change: float = 0.0


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next larger number of ``dtype``."""
    return torch.finfo(dtype).eps / 2


def ulp(largest: float, dtype: torch.dtype) -> float:
    """Unit in the last place: the distance between neighbouring numbers of ``dtype`` at ``largest``."""
    info = torch.finfo(dtype)
    if not math.isfinite(largest) or largest < info.smallest_normal:
        return info.smallest_normal * info.eps
    return info.eps * 2.0 ** math.floor(math.log2(largest))


def max_finite_abs(values: Tensor) -> float:
    """Largest finite absolute value; 0 if there is none."""
    values = values[values.isfinite()]
    return float(values.abs().max()) if values.numel() else 0.0


@dataclass
class _Changes:
    """Changes of one quantity in all perturbations so far."""

    jumps: Tensor
    largest: Tensor
    norms: list[Tensor] = field(default_factory=list)


class SensitivityTrials:
    """Perturbed runs of native, and what they change. :meth:`add` runs more of them.

    With inputs rounded to whole numbers, sums inside the function tie as well, and a perturbation of the inputs
    breaks these ties. But whole numbers are computed without rounding: a jump after a perturbed input says nothing.
    """

    def __init__(
        self,
        native: Callable[..., Any],
        inputs: dict[str, Tensor],
        oracle: dict[str, Tensor | None],
        variant: Variant,
        seed: int,
        kinks: bool,
    ) -> None:
        """Run the first pairs.

        Args:
            native: the trusted function.
            inputs: the variant's inputs in double precision.
            oracle: outputs and gradients of ``native`` for ``inputs`` in double precision.
            kinks: True if a ReLU or a maximum follows a sum inside the function.
        """
        self.native, self.inputs, self.variant, self.seed = native, inputs, variant, seed
        self.oracle = {
            name: as_real(value) for name, value in oracle.items() if value is not None and has_gradient(value)
        }
        is_float64 = variant.dtype is torch.float64
        self.tolerated_size = (ROUNDINGS_FLOAT64 if is_float64 else ROUNDINGS) * unit_roundoff(variant.dtype)
        self.size = (ENLARGEMENT_KINKS if kinks else ENLARGEMENT) * self.tolerated_size
        self.incoming = {
            n: incoming_gradient(oracle[output_name(n)], variant, seed + n)
            for n in range(len(oracle))
            if oracle.get(output_name(n)) is not None
        }
        self.changes = {
            name: _Changes(torch.zeros_like(value, dtype=torch.bool), torch.zeros_like(value))
            for name, value in self.oracle.items()
        }
        self.num_pairs = 0
        self.add(INPUT_PAIRS, OPERATION_PAIRS)

    def add(self, input_pairs: int = MORE_INPUT_PAIRS, operation_pairs: int = MORE_OPERATION_PAIRS) -> None:
        """Run further pairs of perturbations."""
        for n in range(input_pairs + operation_pairs):
            self.num_pairs += 1
            perturbs_inputs = n < input_pairs
            signs: list[Tensor] = []
            pair = [self._run(size, perturbs_inputs, signs) for size in (self.size, -self.size)]
            for name, changes in self.changes.items():
                self._add_pair(changes, name, *(values.get(name) for values in pair), perturbs_inputs)

    def _run(self, size: float, perturbs_inputs: bool, signs: list[Tensor]) -> dict[str, Tensor | None]:
        trial, inputs = self.num_pairs, self.inputs
        if perturbs_inputs:
            inputs = {name: perturb_by_value(value, size, trial) for name, value in inputs.items()}
        # Made outside PerturbOperations: to make them is no operation of the function.
        incoming = {n: perturb_by_position(gradient, size, trial) for n, gradient in self.incoming.items()}
        mode = (
            nullcontext()
            if perturbs_inputs
            else self._perturb_operations(size, signs, (*inputs.values(), *incoming.values()))
        )
        float64 = Variant(device=self.variant.device)
        with mode:
            result = run_variant(
                self.native, inputs, float64, self.seed, lambda n, _: incoming[n], finds_changes=False
            )
        return result.values

    def _perturb_operations(self, size: float, signs: list[Tensor], variables: Iterable[Tensor]) -> PerturbOperations:
        return PerturbOperations(size, self.num_pairs, self.variant.dtype, signs, variables, records=size > 0)

    def _add_pair(
        self, changes: _Changes, name: str, up: Tensor | None, down: Tensor | None, perturbs_inputs: bool
    ) -> None:
        expected = self.oracle[name]
        if up is None or down is None or not expected.numel():
            return
        up, down = (as_real(value) - expected for value in (up, down))
        is_finite = up.isfinite() & down.isfinite()
        up, down = up.where(is_finite, 0.0), down.where(is_finite, 0.0)
        largest, sums = torch.maximum(up.abs(), down.abs()), (up + down).abs()
        jumps = (sums > JUMP * largest) & (sums > JUMP * self.size * max_finite_abs(expected))
        if self.variant.data == "whole numbers" and perturbs_inputs:
            largest, jumps = largest.where(~jumps, 0.0), torch.zeros_like(jumps)
        changes.jumps |= jumps
        changes.largest = torch.maximum(changes.largest, largest)
        changes.norms += [up.abs(), down.abs()]

    def sensitivity(self, name: str) -> Sensitivity:
        """Return the sensitivity of one quantity, from all perturbations so far."""
        changes = self.changes.get(name)
        if changes is None or not changes.jumps.numel():
            return Sensitivity()
        jumps = changes.jumps
        if float(jumps.double().mean()) > 0.5:
            jumps = torch.ones_like(jumps)  # each value that jumps reaches nearly every element, as in a deep network
        smooth = max_finite_abs(changes.largest[~jumps])
        max_change = smooth * self.tolerated_size / self.size
        if not jumps.any():
            return Sensitivity(max_change, smooth / self.size)
        norm_change = max(float(change[jumps].norm()) for change in changes.norms)
        return Sensitivity(max_change, smooth / self.size, jumps, changes.largest, norm_change)
