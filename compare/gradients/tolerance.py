"""The tolerance of a comparison: how far from the float64 oracle a correct result may be. It is measured, not chosen.

The tolerance has two parts. The first is twice the error that native PyTorch makes in the same dtype. The second is
the change of native's float64 result when its inputs, or the results of its operations, are perturbed by a few
rounding errors: a result that is exact for slightly different inputs is as good as any. The second part is needed
because native's error can be 0 by chance, when a sum happens to be right to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from compare.gradients.run_variant import output_name, run_variant
from compare.gradients.variants import Variant, incoming_gradient

INPUT_TRIALS = 6  # for one number, six normal draws are all below a seventh of their spread once in 500,000 times
OPERATION_TRIALS = 3  # further trials, which perturb the results of operations instead of the inputs
ROUNDINGS = 4  # size of a perturbation in unit roundoffs; sums and products inside a correct function round as often
# Native's own error in float64 cannot be measured, so only the second part remains, and it is chosen generously: it
# stays eight digits below the smallest mistake that compare promises to find.
ROUNDINGS_FLOAT64 = 64
# With a kink inside, correct results differ where rounding carries a value across the kink. A perturbation of twice
# the size detects that.
ROUNDINGS_KINKS = 8


@dataclass(frozen=True)
class Sensitivity:
    """Change of one quantity under small perturbations of the inputs.

    Attributes:
        max_change: largest absolute change of an element.
        norm_change: norm of the change.
        scale: largest change of an element divided by the relative perturbation of the inputs: the size of the
            oracle's largest element, or of the terms that cancel in it.
        crosses_kink: True if a perturbation carried a value across a kink.
    """

    max_change: float = 0.0
    norm_change: float = 0.0
    scale: float = 0.0
    crosses_kink: bool = False


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


def measure_sensitivity(
    native: Callable[..., Any],
    inputs: dict[str, Tensor],
    oracle: dict[str, Tensor | None],
    variant: Variant,
    seed: int,
    kinks: bool,
) -> dict[str, Sensitivity]:
    """Measure how every quantity of ``oracle`` changes when inputs and incoming gradients change by a few roundings.

    Equal values change equally, so ties stay ties. With inputs rounded to whole numbers, sums inside the function tie
    as well, and a perturbation of the inputs breaks these ties. There, a relative change larger than the square root
    of the unit roundoff counts as a crossed kink and is not part of the sensitivity.

    Args:
        native: the trusted function.
        inputs: the variant's inputs in float64.
        oracle: outputs and gradients of ``native`` for ``inputs`` in float64.
        kinks: True if a ReLU or a maximum follows a sum inside the function.
    """
    roundings = ROUNDINGS_KINKS if kinks else ROUNDINGS
    if variant.dtype is torch.float64:
        roundings = ROUNDINGS_FLOAT64
    size = roundings * unit_roundoff(variant.dtype)
    kink_threshold = math.sqrt(unit_roundoff(variant.dtype))
    float64 = Variant(device=variant.device)
    trials: dict[str, list[Sensitivity]] = {name: [] for name in oracle}
    for trial in range(INPUT_TRIALS + OPERATION_TRIALS):
        perturbs_inputs = trial < INPUT_TRIALS
        trial_inputs = inputs
        if perturbs_inputs:
            trial_inputs = {name: _perturb_by_value(value, size, trial) for name, value in inputs.items()}
        incoming = {  # drawn here, outside _PerturbOperations: drawing them is no operation of the function
            n: _perturb_by_position(incoming_gradient(oracle[output_name(n)], variant, seed + n), size, trial)
            for n in range(len(oracle))
            if oracle.get(output_name(n)) is not None
        }

        def gradients(n: int, output: Tensor, incoming: dict[int, Tensor] = incoming) -> Tensor:
            return incoming[n]

        with nullcontext() if perturbs_inputs else _PerturbOperations(size, trial):
            result = run_variant(native, trial_inputs, float64, seed, gradients)
        for name, value in result.values.items():
            expected = oracle.get(name)
            if value is None or expected is None or not expected.is_floating_point() or not expected.numel():
                continue
            change = (value - expected).abs()
            change = change[change.isfinite()]
            is_large = change > kink_threshold * max_finite_abs(expected)
            counted = change[~is_large] if variant.data == "whole numbers" and perturbs_inputs else change
            trials[name].append(
                Sensitivity(max_finite_abs(counted), float(change.norm()), crosses_kink=bool(is_large.any()))
            )
    return {
        name: Sensitivity(
            max((s.max_change for s in sensitivities), default=0.0),
            max((s.norm_change for s in sensitivities), default=0.0),
            max((s.max_change for s in sensitivities), default=0.0) / size,
            variant.data == "drawn" and any(s.crosses_kink for s in sensitivities),
        )
        for name, sensitivities in trials.items()
    }


EXACT_OPERATORS = ("aten::clone", "aten::_to_copy", "aten::copy")  # copies: they round nothing


class _PerturbOperations(TorchDispatchMode):
    """Perturb the result of every operation, forward and backward; equal values change equally."""

    def __init__(self, size: float, trial: int) -> None:
        super().__init__()
        self.size, self.trial = size, trial

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator._schema.name in EXACT_OPERATORS or any(
            returned.alias_info is not None for returned in operator._schema.returns
        ):
            return result  # a view or an in-place result: no new numbers, or numbers that other tensors share
        return tree_map(self._perturb, result)

    def _perturb(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        return _perturb_by_value(value, self.size, self.trial)  # inside __torch_dispatch__ the mode is off


def _perturb_by_value(value: Tensor, size: float, trial: int) -> Tensor:
    """Multiply each element by 1 + size or 1 − size; a hash of its bits decides, so equal elements change equally."""
    if not value.is_floating_point():
        return value
    return value * (1 + size * _pseudo_random_signs(value.contiguous().view(torch.int64), trial))


def _perturb_by_position(value: Tensor, size: float, trial: int) -> Tensor:
    """Multiply each element by 1 + size or 1 − size; its position decides.

    Incoming gradients have no ties to preserve, and perturbations of equal elements must not cancel by symmetry.
    """
    positions = torch.arange(value.numel(), device=value.device).reshape(value.shape)
    return value * (1 + size * _pseudo_random_signs(positions * 0x2545F4914F6CDD1D, trial))


def _pseudo_random_signs(bits: Tensor, trial: int) -> Tensor:
    """Hash each int64 to 1 or −1; the same bits and trial always give the same sign."""
    mixed = (bits ^ (bits >> 31)) * (0x5851F42D4C957F2D + 2 * trial) + trial * 0x14057B7EF767814F
    mixed = (mixed ^ (mixed >> 29)) * 0x369DEA0F31A53F85
    return 1 - 2 * ((mixed >> 62) & 1).double()
